//! A server's status in Prometheus' text format. docs/operations.md lists the metrics, and a test compares the list.

mod page;

use page::{Labels, Page, label};
use server::control::api::{
    AlarmInfo, DrillInfo, MachineStatus, NbdStatus, OperationStatus, Status, TrafficStatus,
};

/// Bounds of latencies, as powers of two of nanoseconds: 8.192 us to 17 s.
const BOUND_POWERS: std::ops::RangeInclusive<u32> = 13..=34;

/// All metrics of a status.
pub fn text(status: &Status) -> String {
    let mut page = Page::default();
    page.gauge("understudy_memory_bytes", "Resident memory of the server.");
    page.sample(&[], status.memory_bytes);
    page.gauge("understudy_store_free_bytes", "Room left in the store, where it is known.");
    status.free_bytes.iter().for_each(|free| page.sample(&[], free));
    alarms(&mut page, status);
    machines(&mut page, &status.machines);
    disks(&mut page, &status.machines);
    connections(&mut page, &status.nbd);
    let exports = status
        .nbd
        .exports
        .iter()
        .map(|export| Counted { labels: vec![label("export", &export.export)], traffic: &export.traffic });
    traffic(&mut page, "understudy_nbd", "of an export", &exports.collect::<Vec<_>>());
    traffic(&mut page, "understudy_nbd_client", "of one connection", &clients(&status.nbd));
    page.text()
}

fn alarms(page: &mut Page, status: &Status) {
    page.gauge(
        "understudy_alarm",
        "1 for each thing that wants a person; without a machine it is the store's.",
    );
    let mut samples = |machine: &str, alarms: &[AlarmInfo]| {
        for alarm in alarms {
            page.sample(&[label("machine", machine), label("alarm", &alarm.alarm)], 1);
        }
    };
    samples("", &status.alarms);
    status.machines.iter().for_each(|machine| samples(&machine.name, &machine.alarms));
}

/// What is measured of a machine: `None` where there is nothing to say.
type Measure<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

fn machines(page: &mut Page, machines: &[MachineStatus]) {
    page.gauge("understudy_machine_state", "1 with the state that the machine is in.");
    for machine in machines {
        page.sample(&[label("machine", &machine.name), label("state", &machine.state)], 1);
    }
    const MEASURES: [Measure<MachineStatus>; 11] = [
        ("rpo_seconds", "Age of the newest checkpoint.", |machine| machine.rpo_ms.map(seconds)),
        ("heartbeat_age_seconds", "Since the agent was last heard.", |machine| {
            machine.heartbeat_age_ms.map(seconds)
        }),
        ("window_seconds", "How far back the history goes.", |machine| machine.window_ms.map(seconds)),
        ("checkpoints", "Checkpoints that are kept.", |machine| Some(machine.checkpoints as f64)),
        ("gaps", "Intervals without checkpoints.", |machine| Some(machine.gaps as f64)),
        ("images_bytes", "What the images take up.", |machine| Some(machine.space.images_bytes as f64)),
        ("journal_bytes", "What logs and indexes take up.", |machine| {
            Some(machine.space.journal_bytes as f64)
        }),
        ("scrub_damage", "Findings of the last scrub.", |machine| {
            machine.scrub.as_ref().map(|scrub| scrub.damage as f64)
        }),
        ("drill_passed", "1 where the last drill succeeded, else 0.", |machine| {
            last_drill(machine).map(|last| if last.passed { 1.0 } else { 0.0 })
        }),
        ("drill_rto_seconds", "What the last drill took to its probe.", |machine| {
            last_drill(machine)?.rto_ms.map(seconds)
        }),
        ("drill_start_seconds", "When the last drill began, since 1970.", |machine| {
            last_drill(machine).map(|last| seconds(last.started_ms))
        }),
    ];
    for (name, help, measure) in MEASURES {
        page.gauge(&format!("understudy_machine_{name}"), help);
        for machine in machines {
            measure(machine).iter().for_each(|value| page.sample(&[label("machine", &machine.name)], value));
        }
    }
}

fn last_drill(machine: &MachineStatus) -> Option<&DrillInfo> {
    machine.drill.as_ref()?.last.as_ref()
}

fn disks(page: &mut Page, machines: &[MachineStatus]) {
    let disks = || machines.iter().flat_map(|machine| machine.disks.iter().map(move |disk| (machine, disk)));
    let labels = |machine: &MachineStatus, index: u16| {
        [label("machine", &machine.name), label("disk", &index.to_string())]
    };
    page.gauge("understudy_disk_backlog_bytes", "What has changed at the machine and is not acknowledged.");
    disks().for_each(|(machine, disk)| page.sample(&labels(machine, disk.index), disk.backlog_bytes));
    page.gauge("understudy_disk_churn_bytes_per_second", "What is written at the machine.");
    disks()
        .for_each(|(machine, disk)| page.sample(&labels(machine, disk.index), disk.churn_bytes_per_second));
    page.counter("understudy_disk_received_bytes_total", "What the agent has sent since the server started.");
    disks().for_each(|(machine, disk)| page.sample(&labels(machine, disk.index), disk.received_bytes));
}

fn connections(page: &mut Page, nbd: &NbdStatus) {
    page.gauge("understudy_nbd_connections", "NBD connections that are open, handshakes included.");
    page.sample(&[], nbd.connections);
    page.counter("understudy_nbd_connections_accepted_total", "NBD connections that were given a place.");
    page.sample(&[], nbd.accepted);
    page.counter("understudy_nbd_connections_turned_away_total", "NBD connections for which there was none.");
    page.sample(&[], nbd.turned_away);
    page.counter("understudy_nbd_handshakes_failed_total", "NBD handshakes that came to nothing.");
    page.sample(&[], nbd.failed_handshakes);
    page.gauge("understudy_nbd_clients", "Connections to an export.");
    for export in &nbd.exports {
        page.sample(&[label("export", &export.export)], export.clients.len());
    }
}

/// Traffic and whose it is.
struct Counted<'a> {
    labels: Labels,
    traffic: &'a TrafficStatus,
}

fn clients(nbd: &NbdStatus) -> Vec<Counted<'_>> {
    let all = nbd.exports.iter().flat_map(|export| export.clients.iter().map(move |client| (export, client)));
    let counted = all.map(|(export, client)| Counted {
        labels: vec![
            label("export", &export.export),
            label("connection", &client.connection.to_string()),
            label("address", &client.address),
            label("client", client.names.first().map_or("", String::as_str)),
        ],
        traffic: &client.traffic,
    });
    counted.collect()
}

fn traffic(page: &mut Page, prefix: &str, whose: &str, all: &[Counted<'_>]) {
    page.gauge(&format!("{prefix}_requests_in_flight"), &format!("Requests {whose} that are worked on."));
    all.iter().for_each(|counted| page.sample(&counted.labels, counted.traffic.in_flight));
    page.counter(
        &format!("{prefix}_errors_total"),
        &format!("Requests {whose} that were answered with an error."),
    );
    each_operation(all, |labels, operation| page.sample(labels, operation.errors));
    page.counter(&format!("{prefix}_bytes_total"), &format!("Lengths of requests {whose} that succeeded."));
    each_operation(all, |labels, operation| page.sample(labels, operation.bytes));
    page.histogram(
        &format!("{prefix}_request_seconds"),
        &format!("From having a request {whose} to having sent its reply."),
    );
    each_operation(all, |labels, operation| {
        let below = |bound_ns: u64| {
            let within = operation
                .latency
                .iter()
                .filter(|bucket| bucket.below_ns.is_some_and(|below| below <= bound_ns));
            within.map(|bucket| bucket.requests).sum::<u64>()
        };
        let bounds = BOUND_POWERS.map(|power| 1u64 << power).map(|bound| (bound as f64 / 1e9, below(bound)));
        page.histogram_sample(labels, bounds, operation.requests, operation.total_ns as f64 / 1e9);
    });
}

fn each_operation(all: &[Counted<'_>], mut with: impl FnMut(&[page::Label], &OperationStatus)) {
    for counted in all {
        for operation in &counted.traffic.operations {
            let mut labels = counted.labels.clone();
            labels.push(label("operation", &operation.operation));
            with(&labels, operation);
        }
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::control::api::{ClientStatus, ExportStatus, LatencyBucket};

    fn status() -> Status {
        let bucket = |below_ns, requests| LatencyBucket { below_ns, requests };
        let read = OperationStatus {
            operation: "read".to_owned(),
            requests: 6,
            errors: 1,
            bytes: 20480,
            total_ns: 1_500_000_000,
            latency: vec![
                bucket(Some(1024), 1),
                bucket(Some(10240), 2),
                bucket(Some(16384), 2),
                bucket(None, 1),
            ],
            ..OperationStatus::default()
        };
        let traffic = TrafficStatus { in_flight: 2, operations: vec![read] };
        let client = ClientStatus {
            connection: 7,
            address: "127.0.0.1:5000".to_owned(),
            names: vec!["a \"guest\"\\\n".to_owned()],
            encrypted: true,
            connected_ms: 5,
            traffic: traffic.clone(),
        };
        let export = ExportStatus { export: "web1-disk0".to_owned(), clients: vec![client], traffic };
        Status {
            store: String::new(),
            free_bytes: None,
            memory_bytes: 4096,
            machines: Vec::new(),
            alarms: vec![AlarmInfo { alarm: "space".to_owned(), words: String::new() }],
            nbd: NbdStatus { connections: 3, exports: vec![export], ..NbdStatus::default() },
        }
    }

    #[test]
    fn samples_have_the_form_that_prometheus_reads() {
        let text = text(&status());
        for line in [
            "# TYPE understudy_memory_bytes gauge",
            "understudy_memory_bytes 4096",
            "understudy_alarm{machine=\"\",alarm=\"space\"} 1",
            "understudy_nbd_connections 3",
            "understudy_nbd_clients{export=\"web1-disk0\"} 1",
            "understudy_nbd_requests_in_flight{export=\"web1-disk0\"} 2",
            "# TYPE understudy_nbd_errors_total counter",
            "understudy_nbd_bytes_total{export=\"web1-disk0\",operation=\"read\"} 20480",
            "# TYPE understudy_nbd_request_seconds histogram",
            "understudy_nbd_request_seconds_bucket{export=\"web1-disk0\",operation=\"read\",le=\"0.000008192\"} 1",
            "understudy_nbd_request_seconds_bucket{export=\"web1-disk0\",operation=\"read\",le=\"0.000016384\"} 5",
            "understudy_nbd_request_seconds_bucket{export=\"web1-disk0\",operation=\"read\",le=\"17.179869184\"} 5",
            "understudy_nbd_request_seconds_bucket{export=\"web1-disk0\",operation=\"read\",le=\"+Inf\"} 6",
            "understudy_nbd_request_seconds_sum{export=\"web1-disk0\",operation=\"read\"} 1.5",
            "understudy_nbd_request_seconds_count{export=\"web1-disk0\",operation=\"read\"} 6",
            "understudy_nbd_client_errors_total{export=\"web1-disk0\",connection=\"7\",address=\"127.0.0.1:5000\",\
             client=\"a \\\"guest\\\"\\\\\\n\",operation=\"read\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no '{line}' in\n{text}");
        }
    }

    #[test]
    fn the_manual_lists_every_metric() {
        let manual = include_str!("../../docs/operations.md");
        for line in text(&status()).lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(manual.contains(&format!("`{name}`")), "docs/operations.md does not mention {name}");
        }
    }
}
