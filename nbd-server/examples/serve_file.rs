//! Serves a plain file: what scripts/bench nbd measures. `serve_file FILE HOST:PORT|unix:PATH [EXPORTS]`: of several, `disk0`, `disk1`...
//! each is the file. A line on standard input is answered with how many requests of each connection were done.

use blocks::{
    Allocation, ByteLen, ByteOffset, Error, Extent, ExtentStatus, FileRange, RequestClass, Result, Volume,
    check_request,
};
use nbd_server::{Export, Exports, Limits, Listener, NbdServer};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A file as it is, in the page cache.
struct FileVolume {
    file: Arc<File>,
    len: ByteLen,
}

fn failed(error: std::io::Error) -> Error {
    Error::io("the file", error)
}

impl FileVolume {
    fn check(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        check_request(self.len, self.alignment(), offset, len).map(|_| ())
    }
}

impl Volume for FileVolume {
    fn len(&self) -> ByteLen {
        self.len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], _: RequestClass) -> Result<()> {
        self.check(offset, ByteLen::of(buffer))?;
        self.file.read_exact_at(buffer, offset.get()).map_err(failed)
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8], fua: bool, _: RequestClass) -> Result<()> {
        self.check(offset, ByteLen::of(data))?;
        self.file.write_all_at(data, offset.get()).map_err(failed)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, extent: Extent, _: bool, fua: bool, class: RequestClass) -> Result<()> {
        let zeroes = vec![0; 1 << 20];
        for piece in extent.split(ByteLen::of(&zeroes)) {
            self.write_at(piece.start(), &zeroes[..piece.len().as_usize()], false, class)?;
        }
        if fua { self.flush() } else { Ok(()) }
    }

    fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
        self.write_zeroes(extent, false, fua, class)
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(failed)
    }

    fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
        self.check(extent.start(), extent.len())?;
        Ok(vec![ExtentStatus { extent, allocation: Allocation::Data }])
    }

    fn file_range(&self, extent: Extent) -> Option<FileRange> {
        Some(FileRange { file: Arc::clone(&self.file), offset: extent.start() })
    }
}

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
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
    let len = ByteLen::new(file.metadata().map_err(failed)?.len());
    let exports = Exports::new();
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    let volume = Arc::new(FileVolume { file: Arc::new(file), len });
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
