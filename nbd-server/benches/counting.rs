//! What it costs to count a request: by operation, with bytes, errors and a histogram of latencies, clock reads included.
//!
//! `cargo bench -p understudy-nbd-server --features fuzzing --bench counting`

use std::time::Instant;

const REQUESTS: u64 = 5_000_000;

fn main() {
    let mut found: Vec<f64> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(nbd_server::fuzzing::count(REQUESTS), REQUESTS);
            begun.elapsed().as_nanos() as f64 / REQUESTS as f64
        })
        .collect();
    found.sort_by(f64::total_cmp);
    println!("a counted request: {:.0} ns (median of 9; {:.0} to {:.0})", found[4], found[0], found[8]);
}
