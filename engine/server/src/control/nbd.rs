//! What the clients of the exports did.

use super::api::{ClientStatus, ExportStatus, LatencyBucket, NbdStatus, OperationStatus, TrafficStatus};
use crate::services::Services;
use blocks::MachineId;
use nbd_server::{ClientTraffic, ExportTraffic, OperationTraffic, Traffic};
use std::time::Duration;

/// The NBD server's counts, with all exports or those of one machine.
pub(super) fn status(services: &Services, machine: Option<MachineId>) -> NbdStatus {
    let arrivals = services.arrivals.look();
    let mut exports = services.exports.traffic();
    if let Some(machine) = machine {
        let names = services.sessions.export_names(machine);
        exports.retain(|export| names.contains(&export.name));
    }
    NbdStatus {
        connections: arrivals.open,
        accepted: arrivals.accepted,
        turned_away: arrivals.turned_away,
        failed_handshakes: arrivals.failed_handshakes,
        exports: exports.into_iter().map(export).collect(),
    }
}

fn export(export: ExportTraffic) -> ExportStatus {
    let traffic = traffic(&export.traffic);
    ExportStatus { export: export.name, clients: export.clients.into_iter().map(client).collect(), traffic }
}

fn client(client: ClientTraffic) -> ClientStatus {
    ClientStatus {
        connection: client.connection,
        address: client.address,
        names: client.names,
        encrypted: client.encrypted,
        connected_ms: u64::try_from(client.connected.as_millis()).unwrap_or(u64::MAX),
        traffic: traffic(&client.traffic),
    }
}

fn traffic(traffic: &Traffic) -> TrafficStatus {
    let operations = traffic.seen().map(|(kind, seen)| operation(kind.name(), seen)).collect();
    TrafficStatus { in_flight: traffic.in_flight, operations }
}

fn operation(name: &str, seen: &OperationTraffic) -> OperationStatus {
    let latency = &seen.latency;
    let permille = |permille| latency.permille(permille).map_or(0, nanoseconds);
    let bucket = |(below, requests): (Option<Duration>, u64)| LatencyBucket {
        below_ns: below.map(nanoseconds),
        requests,
    };
    OperationStatus {
        operation: name.to_owned(),
        requests: seen.requests(),
        errors: seen.errors,
        bytes: seen.bytes,
        p50_ns: permille(500),
        p99_ns: permille(990),
        p999_ns: permille(999),
        longest_ns: nanoseconds(latency.longest()),
        total_ns: nanoseconds(latency.sum()),
        latency: latency.buckets().map(bucket).collect(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
