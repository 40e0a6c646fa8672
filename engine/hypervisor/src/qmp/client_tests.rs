use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// A peer that does what the script says with the first connection.
fn peer(
    script: impl FnOnce(&mut BufReader<UnixStream>) + Send + 'static,
) -> (tempfile::TempDir, std::path::PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || script(&mut BufReader::new(listener.accept().unwrap().0)));
    (folder, path, thread)
}

fn say(stream: &mut BufReader<UnixStream>, text: &str) {
    // Who is of no use any more is hung up on.
    let _ = writeln!(stream.get_mut(), "{text}");
}

fn hear(stream: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_default()
}

/// Greets, agrees, and answers one command with the lines that `answer` makes of its number.
fn answering(answer: impl FnOnce(u64) -> Vec<String> + Send + 'static) -> (Result<Value>, Option<Qmp>) {
    answering_within(Duration::from_secs(60), answer)
}

/// The same, for a client that waits no longer.
fn answering_within(
    patience: Duration,
    answer: impl FnOnce(u64) -> Vec<String> + Send + 'static,
) -> (Result<Value>, Option<Qmp>) {
    let (_folder, path, thread) = peer(move |stream| {
        say(stream, GREETING);
        assert_eq!(hear(stream)["execute"], "qmp_capabilities");
        say(stream, r#"{"return": {}, "id": 1}"#);
        let asked = hear(stream);
        let lines = answer(asked["id"].as_u64().unwrap());
        lines.iter().for_each(|line| say(stream, line));
        // Silent until the other side has gone.
        let _ = stream.read_line(&mut String::new());
    });
    let mut qmp = Qmp::connect(&path, patience).unwrap();
    let result = qmp.execute("query-status", json!({}));
    let kept = result.is_ok().then_some(qmp);
    if kept.is_none() {
        thread.join().unwrap();
    }
    (result, kept)
}

#[test]
fn answers_find_their_commands_between_events() {
    let (result, qmp) = answering(|id| {
        vec![
            r#"{"event": "RESUME", "timestamp": {}}"#.to_owned(),
            String::new(),
            format!(r#"{{"return": {{"status": "running"}}, "id": {id}}}"#),
            r#"{"event": "SHUTDOWN"}"#.to_owned(),
        ]
    });
    assert_eq!(result.unwrap()["status"], "running");
    let mut qmp = qmp.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    qmp.wait_event("SHUTDOWN", deadline).unwrap();
    qmp.wait_event("RESUME", deadline).unwrap();
    let error = qmp.wait_event("RESUME", Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "an event is had once");
}

#[test]
fn what_qemu_refuses_is_said_in_its_words() {
    let (result, _) = answering(|id| {
        vec![format!(r#"{{"error": {{"class": "GenericError", "desc": "no such"}}, "id": {id}}}"#)]
    });
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("query-status") && error.to_string().contains("no such"), "{error}");
}

#[test]
fn hostile_answers_are_errors_and_nothing_waits_for_ever() {
    let kind = |lines: Vec<String>| answering(move |_| lines).0.unwrap_err().kind();
    assert_eq!(kind(vec![r#"{"return": {}, "id": 77}"#.to_owned()]), ErrorKind::Corrupt);
    assert_eq!(kind(vec![r#"{"id": 2}"#.to_owned()]), ErrorKind::Corrupt);
    assert_eq!(kind(vec!["[1, 2".to_owned()]), ErrorKind::Corrupt);
    assert_eq!(kind(vec!["[".repeat(10_000)]), ErrorKind::Corrupt);
    assert_eq!(kind(vec!["x".repeat(3 << 20)]), ErrorKind::Corrupt, "a line has a longest length");
    // Long enough for the greeting on a machine that is busy.
    let patience = Duration::from_secs(3);
    let kind = |lines: Vec<String>| answering_within(patience, move |_| lines).0.unwrap_err().kind();
    assert_eq!(kind(Vec::new()), ErrorKind::Cancelled);
    let events = || (0..2000).map(|number| format!(r#"{{"event": "E{number}"}}"#)).collect();
    assert_eq!(kind(events()), ErrorKind::Cancelled, "a flood of events is no answer");
}

#[test]
fn who_does_not_greet_is_no_qemu() {
    let (_folder, path, _) = peer(|stream| drop(stream.read_line(&mut String::new())));
    let error = Qmp::connect(&path, Duration::from_millis(100)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let (_folder, path, _) = peer(|stream| say(stream, r#"{"hello": 1}"#));
    assert_eq!(Qmp::connect(&path, Duration::from_secs(10)).err().unwrap().kind(), ErrorKind::Corrupt);
    let (_folder, path, _) = peer(|_| ());
    assert_eq!(Qmp::connect(&path, Duration::from_secs(10)).err().unwrap().kind(), ErrorKind::NotFound);
    let nowhere = Qmp::connect(Path::new("/nowhere/qmp"), Duration::from_secs(10)).err().unwrap();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

#[test]
fn a_peer_that_accepts_nothing_does_not_hold_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let connected: Vec<_> = (0..100).map_while(|_| Lines::connect(&path).ok()).collect();
    let error = Qmp::connect(&path, Duration::from_millis(50)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{}", connected.len());
}
