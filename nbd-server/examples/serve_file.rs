//! Serves a plain file: what scripts/bench nbd measures. `serve_file FILE HOST:PORT|unix:PATH [EXPORTS]`: of several, `disk0`, `disk1`...
//! each is the file. A line on standard input is answered with how many requests of each connection were done.

#[path = "support/file_volume.rs"]
mod file_volume;

use blocks::Result;
use file_volume::FileVolume;
use nbd_server::{Export, Exports, Limits, Listener, NbdServer};
use std::sync::Arc;

/// How many requests of each connection were answered, as JSON.
fn requests(exports: &Exports) -> String {
    let traffic = exports.traffic();
    let clients = traffic.iter().flat_map(|export| &export.clients);
    let counts: Vec<_> =
        clients.map(|client| format!("\"{}\": {}", client.connection, client.traffic.requests())).collect();
    format!("{{{}}}", counts.join(", "))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(address)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: serve_file FILE HOST:PORT|unix:PATH [EXPORTS]");
        std::process::exit(2);
    };
    let exports = Exports::new();
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    let volume = Arc::new(FileVolume::open(&path)?);
    exports.insert("", Export::new(volume.clone()))?;
    for number in 0..if count > 1 { count } else { 0 } {
        exports.insert(format!("disk{number}"), Export::new(volume.clone()))?;
    }
    let listener = Listener::bind(&address.parse()?)?;
    println!("{}", listener.uri(""));
    let _server = NbdServer::start(vec![listener], exports.clone(), Limits::default())?;
    for _ in std::io::stdin().lines() {
        println!("{}", requests(&exports));
    }
    loop {
        std::thread::park();
    }
}
