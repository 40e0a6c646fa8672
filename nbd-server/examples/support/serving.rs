//! One disk behind the server, for as long as the program runs.

use blocks::{Result, Volume};
use nbd_server::{Export, Exports, Limits, Listener, NbdServer};
use std::sync::Arc;

/// Serves it as the default export, at the address that is the program's one argument.
pub fn serve(program: &str, volume: Arc<dyn Volume>) -> Result<()> {
    let Some(address) = std::env::args().nth(1) else {
        eprintln!("usage: {program} HOST:PORT|unix:PATH");
        std::process::exit(2);
    };
    let exports = Exports::new();
    exports.insert("", Export::new(volume))?;
    let listener = Listener::bind(&address.parse()?)?;
    println!("{}", listener.uri(""));
    let _server = NbdServer::start(vec![listener], exports, Limits::default())?;
    loop {
        std::thread::park();
    }
}
