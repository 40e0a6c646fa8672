//! How a server, its machines and its exports are.

use super::DrillInfo;
use serde::{Deserialize, Serialize};

/// A server and its machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The store's identity.
    pub store: String,
    /// Room left, in bytes.
    pub free_bytes: Option<u64>,
    /// The server's resident memory, in bytes.
    pub memory_bytes: u64,
    /// Its machines, by name.
    pub machines: Vec<MachineStatus>,
    /// What wants a person, of the store as a whole.
    #[serde(default)]
    pub alarms: Vec<AlarmInfo>,
    /// Who uses the disks that are served; of one machine, those of its sessions.
    #[serde(default)]
    pub nbd: NbdStatus,
}

/// The NBD server since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NbdStatus {
    /// Connections that are open, those in their handshake included.
    pub connections: u64,
    /// Connections that were given a place.
    pub accepted: u64,
    /// Connections that were not, for want of a place.
    pub turned_away: u64,
    /// Handshakes that came to nothing.
    pub failed_handshakes: u64,
    pub exports: Vec<ExportStatus>,
}

/// An export and who uses it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub export: String,
    /// Those that are connected.
    pub clients: Vec<ClientStatus>,
    /// What they and those before them did since the export is served.
    pub traffic: TrafficStatus,
}

/// A connection to an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    pub connection: u64,
    /// `ADDRESS:PORT`, or `unix:pid=PID,uid=UID`.
    pub address: String,
    /// The names in its certificate.
    pub names: Vec<String>,
    pub encrypted: bool,
    pub connected_ms: u64,
    pub traffic: TrafficStatus,
}

/// Requests over NBD.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficStatus {
    /// Those that are being worked on.
    pub in_flight: u64,
    /// The kinds of which there was one.
    pub operations: Vec<OperationStatus>,
}

/// The requests of one kind that were answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatus {
    /// `read`, `write`, `flush`, `trim`, `write-zeroes`, `cache`, `block-status`, `unknown`.
    pub operation: String,
    pub requests: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// The lengths of the ranges of those that were not.
    pub bytes: u64,
    /// What the median took, one of a hundred, one of a thousand, and the longest, in nanoseconds: from having the request with
    /// its payload to having sent the reply. The first three are up to a quarter too high.
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub longest_ns: u64,
    /// All of them together.
    pub total_ns: u64,
    pub latency: Vec<LatencyBucket>,
}

/// So many requests took less than the bound, and not less than the bound before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyBucket {
    /// None where nothing bounds it.
    pub below_ns: Option<u64>,
    pub requests: u64,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    pub machine: String,
    pub name: String,
    pub generation: u64,
    /// `initial-copy`, `scanning`, `protected`, `held`, `disconnected`, `failed` (heartbeats stopped), `stopped` (said
    /// goodbye), `promoted` (a session is in charge), `failing-back`.
    pub state: String,
    /// Why, where there is more to say.
    pub detail: String,
    /// Since its last heartbeat, in milliseconds.
    pub heartbeat_age_ms: Option<u64>,
    /// Age of the newest checkpoint, in milliseconds: what would be lost now (achieved RPO).
    pub rpo_ms: Option<u64>,
    pub checkpoints: u64,
    pub gaps: u64,
    pub disks: Vec<DiskStatus>,
    /// Who keeps the horizon from moving, for people.
    pub pins: Vec<String>,
    /// The ladder by which its history is kept.
    #[serde(default)]
    pub keep: String,
    /// What is done when it fails, in words that begin with `notify`, `recover` or `boot`.
    #[serde(default)]
    pub on_failure: String,
    /// How far back its history goes now, in milliseconds.
    #[serde(default)]
    pub window_ms: Option<u64>,
    #[serde(default)]
    pub space: SpaceStatus,
    /// What wants a person.
    #[serde(default)]
    pub alarms: Vec<AlarmInfo>,
    /// What the last scrub came to; none where there was none yet.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
    /// How it is drilled; none where it never was.
    #[serde(default)]
    pub drill: Option<DrillStatus>,
    /// What consolidation has done since the server started.
    #[serde(default)]
    pub consolidation: ConsolidationStatus,
}

/// How a machine is drilled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillStatus {
    /// How often, in milliseconds; missing where only people do it.
    pub every_ms: Option<u64>,
    /// By what it is measured then.
    pub probe: Option<String>,
    pub last: Option<DrillInfo>,
}

/// What a machine takes up on the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpaceStatus {
    pub images_bytes: u64,
    /// Logs and indexes, those of sessions and branches included.
    pub journal_bytes: u64,
    pub quota_bytes: Option<u64>,
    /// How much history the quota buys at the present churn, in milliseconds; never more than the ladder wants. Missing
    /// without a quota, and while nothing is known of the churn.
    pub window_bought_ms: Option<u64>,
}

/// Something that wants a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlarmInfo {
    /// `drill` (the last failed, or none was played in time), `failed`, `held`, `quota`, `window` (the quota buys less
    /// history than is wanted), `superseded` (such a branch keeps the horizon), `horizon` (overdue), `space` (of the store).
    pub alarm: String,
    /// For people.
    pub words: String,
}

/// What consolidation has done since the server started, attempts that were called off included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConsolidationStatus {
    /// Bytes of data that changed, each byte once however often it was written before.
    pub changed_bytes: u64,
    /// Bytes that became zero.
    pub zeroed_bytes: u64,
    /// Bytes written to the image files, with everything that their format adds.
    pub image_written_bytes: u64,
    /// Bytes read back from the images.
    pub image_read_bytes: u64,
    pub log_read_bytes: u64,
    pub freed_bytes: u64,
    /// `image_written_bytes` for each of `changed_bytes`; none where nothing changed.
    pub amplification: Option<f64>,
}

/// What the last scrub of a machine came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// When it ended, in milliseconds since 1970 on the server's clock.
    pub finished_ms: u64,
    pub read_bytes: u64,
    /// How many findings there were.
    pub damage: u64,
    /// The first of them, for people.
    pub findings: Vec<String>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub index: u16,
    pub device: String,
    pub len: u64,
    pub tracker: String,
    /// Bytes that have changed but are not acknowledged.
    pub backlog_bytes: u64,
    /// Bytes written at the source, a second, over the last minute or less.
    pub churn_bytes_per_second: u64,
    /// Bytes received from the agent since the server started.
    pub received_bytes: u64,
    /// Milliseconds until the backlog is sent at the present rate.
    pub eta_ms: Option<u64>,
    /// The image file and the checkpoint it holds.
    pub image: String,
    pub horizon: Option<u64>,
}
