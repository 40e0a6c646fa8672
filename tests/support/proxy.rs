//! A network that can be cut: a TCP forwarder on loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    cut: AtomicBool,
    upstream_bytes: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Forwards to that port of this machine.
    pub fn new(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            cut: AtomicBool::new(false),
            upstream_bytes: AtomicU64::new(0),
            open: Mutex::new(Vec::new()),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if !accepting.cut.load(Ordering::SeqCst) {
                    forward(client, target, &accepting);
                }
            }
        });
        Proxy { port, shared }
    }

    /// Where to connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends every connection and accepts none.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::SeqCst);
        for stream in self.shared.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Accepts connections again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes that went towards the server so far.
    pub fn upstream_bytes(&self) -> u64 {
        self.shared.upstream_bytes.load(Ordering::SeqCst)
    }
}

fn forward(client: TcpStream, target: u16, shared: &Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
    shared.open.lock().expect("no panic").extend([clone(&client), clone(&server)]);
    let counting = Arc::clone(shared);
    let (up_from, up_to) = (clone(&client), clone(&server));
    std::thread::spawn(move || {
        pump(up_from, up_to, |bytes| {
            counting.upstream_bytes.fetch_add(bytes, Ordering::SeqCst);
        })
    });
    std::thread::spawn(move || pump(server, client, |_| ()));
}

fn pump(mut from: TcpStream, mut to: TcpStream, count: impl Fn(u64)) {
    let _ = from.set_read_timeout(Some(Duration::from_secs(3600)));
    let mut buffer = vec![0; 256 << 10];
    while let Ok(bytes) = from.read(&mut buffer) {
        if bytes == 0 || to.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        count(bytes as u64);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
