//! TLS under a connection: the same stream, encrypted from the moment both sides have agreed to it.
//!
//! One thread reads and others write at the same time. The session's state is behind one lock, which nobody holds while
//! waiting for the network; what is to be sent leaves in the order in which it was encrypted because `outgoing` is held
//! meanwhile. Locks: outgoing, then session.

use rustls::Connection as Session;
use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Ciphertext that is taken from the network at once: a few records.
const INCOMING_BYTES: usize = 64 << 10;
/// Plaintext that is encrypted before it is sent.
const OUTGOING_BYTES: usize = 64 << 10;

/// The encryption of one connection.
#[derive(Debug)]
pub struct Tls {
    session: Mutex<Session>,
    incoming: Mutex<Incoming>,
    /// Ciphertext on its way out.
    outgoing: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tls {
    /// A session whose handshake is still to come.
    pub fn new(mut session: Session) -> Tls {
        session.set_buffer_limit(None);
        let buffer = vec![0; INCOMING_BYTES].into_boxed_slice();
        Tls {
            session: Mutex::new(session),
            incoming: Mutex::new(Incoming { buffer, start: 0, end: 0 }),
            outgoing: Mutex::default(),
        }
    }

    /// Goes one step: sends what is to be sent, or takes what has come. Whether the handshake is done.
    pub fn shake_hands<S: Copy + Read + Write>(&self, stream: S) -> io::Result<bool> {
        self.send_pending(stream)?;
        if !lock(&self.session).is_handshaking() {
            return Ok(true);
        }
        let taken = self.take(stream);
        // An alert tells the other side what was wrong.
        let sent = self.send_pending(stream);
        if !taken? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sent.map(|()| false)
    }

    /// The certificates that the other side has shown, its own first.
    pub fn peer_certificates(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        let session = lock(&self.session);
        session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect()
    }

    /// Plaintext that is there; 0 at the end. Waits for the network once at most, and is `Interrupted` where what came
    /// was no whole record, so that the caller can look at its clock.
    pub fn read<S: Copy + Read + Write>(&self, stream: S, buffer: &mut [u8]) -> io::Result<usize> {
        match self.plaintext(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
        self.take(stream)?;
        match self.plaintext(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::Interrupted.into()),
            outcome => outcome,
        }
    }

    fn plaintext(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match lock(&self.session).reader().read(buffer) {
            // The stream ended without a farewell. What was whole has been read; half a message is noticed above.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            outcome => outcome,
        }
    }

    /// Decrypts until there is plaintext or nothing left, with one wait for the network at most; `false` at the end.
    fn take<S: Copy + Read + Write>(&self, mut stream: S) -> io::Result<bool> {
        let mut incoming = lock(&self.incoming);
        if incoming.start == incoming.end {
            let count = stream.read(&mut incoming.buffer)?;
            (incoming.start, incoming.end) = (0, count);
            if count == 0 {
                lock(&self.session).read_tls(&mut io::empty())?;
                return Ok(false);
            }
        }
        let mut session = lock(&self.session);
        while incoming.start < incoming.end {
            let Incoming { buffer, start, end } = &mut *incoming;
            let mut rest = &buffer[*start..*end];
            *start += session.read_tls(&mut rest)?;
            let state = session
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        Ok(true)
    }

    /// Sends all of the head and then all of the body, encrypted. `goes_on` is asked whenever some of it has gone and some has
    /// not.
    pub fn write_all<S: Copy + Read + Write>(
        &self,
        stream: S,
        head: &[u8],
        body: &[u8],
        mut goes_on: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        // A short head travels in the first record of its body.
        let (first, rest) = body.split_at(body.len().min(OUTGOING_BYTES));
        for (head, piece) in
            std::iter::once((head, first)).chain(rest.chunks(OUTGOING_BYTES).map(|piece| (&[][..], piece)))
        {
            let mut session = lock(&self.session);
            session.writer().write_all(head)?;
            session.writer().write_all(piece)?;
            drop(session);
            self.send(stream, &mut outgoing, &mut goes_on)?;
        }
        Ok(())
    }

    /// Says goodbye, where nobody else is sending.
    pub fn close<S: Copy + Read + Write>(&self, stream: S) {
        if let Ok(mut outgoing) = self.outgoing.try_lock() {
            lock(&self.session).send_close_notify();
            // The other side may be gone already.
            let _ = self.send(stream, &mut outgoing, &mut || Ok(()));
        }
    }

    fn send_pending<S: Copy + Read + Write>(&self, stream: S) -> io::Result<()> {
        self.send(stream, &mut lock(&self.outgoing), &mut || Ok(()))
    }

    fn send<S: Copy + Read + Write>(
        &self,
        mut stream: S,
        outgoing: &mut Vec<u8>,
        goes_on: &mut impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut session = lock(&self.session);
        while session.wants_write() {
            session.write_tls(outgoing)?;
        }
        drop(session);
        let mut start = 0;
        let mut sent = Ok(());
        while start < outgoing.len() && sent.is_ok() {
            sent = match stream.write(&outgoing[start..]) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    start += count;
                    if start < outgoing.len() { goes_on() } else { Ok(()) }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(error) => Err(error),
            };
        }
        outgoing.clear();
        sent
    }
}
