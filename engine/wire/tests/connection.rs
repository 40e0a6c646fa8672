//! Messages over streams that deliver as they like, break, stall, or are given up on half way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod messages;

use blocks::{ByteLen, ByteOffset, Compression, DiskIndex, ErrorKind, Extent, Result, Seq};
use messages::{agent_samples, extent, server_samples};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use wire::*;

fn pair(buffer: usize) -> (AgentConnection, ServerConnection) {
    let (agent, server) = duplex(buffer);
    (Connection::new(agent, "the server"), Connection::new(server, "the agent"))
}

fn write(seq: u64) -> AgentMessage {
    let data = (0..PAYLOAD_BYTES_MAX).map(|at| (u64::from(at) * 7 + seq) as u8).collect();
    AgentMessage::Write(Write {
        disk: DiskIndex(0),
        seq: Seq(seq),
        extent: extent(seq << 20, 1 << 20),
        payload: Payload::Data(data),
    })
}

#[tokio::test]
async fn every_message_arrives_however_the_stream_cuts_it() -> Result<()> {
    for buffer in [1, 7, 64, 1 << 16] {
        let (agent, server) = pair(buffer);
        let (mut agent_says, mut agent_hears) = agent.split();
        let (mut server_says, mut server_hears) = server.split();
        let say = async {
            for (_, message) in agent_samples() {
                agent_says.send(&message).await?;
            }
            agent_says.close().await
        };
        let answer = async {
            for (_, message) in server_samples() {
                server_says.send(&message).await?;
            }
            server_says.close().await
        };
        let hear = async {
            for (name, message) in agent_samples() {
                assert_eq!(server_hears.recv().await?, Some(message), "{name}");
            }
            assert_eq!(server_hears.recv().await?, None);
            Ok(())
        };
        let hear_answers = async {
            for (name, message) in server_samples() {
                assert_eq!(agent_hears.recv().await?, Some(message), "{name}");
            }
            assert_eq!(agent_hears.recv().await?, None);
            Ok(())
        };
        tokio::try_join!(say, answer, hear, hear_answers)?;
    }
    Ok(())
}

/// Sends writes that shrink well, and gives what the other side has seen: how often a payload was packed.
async fn packed_of(agent_hears_first: Option<Vec<u8>>, writes: u64) -> usize {
    let (mut stream, agent) = duplex(1 << 20);
    let mut agent: AgentConnection = Connection::new(agent, "the server");
    if let Some(bytes) = agent_hears_first {
        stream.write_all(&bytes).await.unwrap();
        agent.recv().await.unwrap().unwrap();
    }
    let (mut sender, _hears) = agent.split();
    sender.set_compression(Compression::Always);
    let (mut seen, mut head) = (0, [0; HEADER_BYTES]);
    for seq in 1..=writes {
        let payload = Payload::Data(vec![seq as u8; 65536]);
        let extent = Extent::new(ByteOffset::ZERO, ByteLen::new(65536)).unwrap();
        let write = AgentMessage::Write(Write { disk: DiskIndex(0), seq: Seq(seq), extent, payload });
        sender.send(&write).await.unwrap();
        stream.read_exact(&mut head).await.unwrap();
        let len = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        let mut body = vec![0; len(8) + len(12)];
        stream.read_exact(&mut body).await.unwrap();
        let frame = [&head[..], &body].concat();
        assert_eq!(decode_frame::<AgentMessage>(&frame).unwrap(), write);
        seen += usize::from(frame.len() < 4096);
    }
    seen
}

#[tokio::test]
async fn payloads_are_packed_only_for_who_understands_it() {
    assert_eq!(packed_of(None, 3).await, 3);
    let new = encode_frame(VERSION, &ServerMessage::Resume).unwrap();
    assert_eq!(packed_of(Some(new), 3).await, 3);
    let old = encode_frame(1, &ServerMessage::Resume).unwrap();
    assert_eq!(packed_of(Some(old), 3).await, 0);
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_nothing() {
    let (mut stream, server) = duplex(64);
    let mut server: ServerConnection = Connection::new(server, "the agent");
    let expected: Vec<_> = (1..4).map(write).collect();
    let bytes: Vec<u8> =
        expected.iter().flat_map(|message| encode_frame(VERSION, message).unwrap()).collect();
    let feed = tokio::spawn(async move {
        for piece in bytes.chunks(100_003) {
            stream.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    let (mut received, mut dropped) = (Vec::new(), 0);
    while received.len() < expected.len() {
        tokio::select! {
            biased;
            message = server.recv() => received.push(message.unwrap().unwrap()),
            () = tokio::time::sleep(Duration::from_micros(300)) => dropped += 1,
        }
    }
    feed.await.unwrap();
    assert!(received == expected, "what arrived is what was sent");
    assert!(dropped > 3, "receives were dropped in the middle: {dropped}");
}

#[tokio::test]
async fn a_send_that_is_dropped_ends_the_connection() {
    let (mut agent, mut server) = pair(1000);
    let gone = tokio::time::timeout(Duration::from_millis(20), agent.send(&write(1))).await;
    assert!(gone.is_err(), "the message does not fit");
    let error = agent.send(&AgentMessage::Goodbye).await.unwrap_err();
    assert!(error.to_string().contains("in the middle of an earlier message"), "{error}");
    drop(agent);
    let error = server.recv().await.unwrap_err();
    assert!(error.to_string().contains("ended within a message"), "{error}");
    server.recv().await.unwrap_err();
}

#[tokio::test]
async fn a_message_that_breaks_its_rules_leaves_the_connection_whole() {
    let (mut agent, mut server) = pair(1 << 16);
    let AgentMessage::Write(good) = write(1) else { panic!("a write") };
    let bad = AgentMessage::Write(Write { payload: Payload::Data(vec![1]), ..good });
    assert_eq!(agent.send(&bad).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    let (mut agent, _hears) = agent.split();
    let refused = agent.send_all(&[write(2), bad]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "and what is before it stays");
    agent.send(&AgentMessage::Goodbye).await.unwrap();
    assert_eq!(server.recv().await.unwrap(), Some(AgentMessage::Goodbye));
}

#[tokio::test]
async fn what_is_sent_together_arrives_as_single_messages_do() {
    for (buffer, packing) in
        [(7, Compression::Never), (1 << 16, Compression::Never), (64, Compression::Always)]
    {
        let (agent, mut server) = pair(buffer);
        let (mut agent, _hears) = agent.split();
        agent.set_compression(packing);
        let messages: Vec<_> = agent_samples().into_iter().map(|(_, message)| message).collect();
        let sending = async {
            agent.send_all(&messages).await.unwrap();
            agent.send_all(&[]).await.unwrap();
            agent.close().await.unwrap();
        };
        let hearing = async {
            for message in &messages {
                assert_eq!(server.recv().await.unwrap().as_ref(), Some(message));
            }
            assert_eq!(server.recv().await.unwrap(), None);
        };
        tokio::join!(sending, hearing);
    }
}

#[tokio::test]
async fn silence_and_a_peer_that_does_not_read_time_out() {
    let (mut agent, mut server) = pair(1000);
    server.set_idle_timeout(Some(Duration::from_millis(30)));
    let error = server.recv().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("nothing moved for 30ms"), "{error}");
    agent.set_write_timeout(Some(Duration::from_millis(30)));
    let error = agent.send(&write(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("the server"), "{error}");
}

async fn hear(bytes: &[u8]) -> blocks::Error {
    let (mut stream, server): (DuplexStream, DuplexStream) = duplex(1 << 20);
    let mut server: ServerConnection = Connection::new(server, "the agent");
    stream.write_all(bytes).await.unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(10), server.recv()).await;
    let error = waited.expect("refused before the body arrived").unwrap_err();
    server.recv().await.expect_err("an error is final");
    error
}

#[tokio::test]
async fn a_header_is_judged_before_its_body_is_waited_for() {
    let head = |change: fn(&mut [u8])| {
        let mut head = encode_frame(VERSION, &write(1)).unwrap();
        head.truncate(HEADER_BYTES);
        change(&mut head);
        let crc = blocks::crc32c(&head[..20]);
        head[20..24].copy_from_slice(&crc.to_le_bytes());
        head
    };
    for (bytes, kind) in [
        (head(|head| head[8..12].copy_from_slice(&u32::MAX.to_le_bytes())), ErrorKind::Corrupt),
        (head(|head| head[12..16].copy_from_slice(&u32::MAX.to_le_bytes())), ErrorKind::Corrupt),
        (head(|head| head[6] = 0x77), ErrorKind::Unsupported),
        (head(|head| head[4] = 9), ErrorKind::Unsupported),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n".to_vec(), ErrorKind::Corrupt),
    ] {
        let error = hear(&bytes).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("receiving from the agent"), "{error}");
    }
}

#[tokio::test]
async fn unix_sockets_and_loopback_go_plain() {
    let folder = tempfile::tempdir().unwrap();
    let unix = Address::Unix(folder.path().join("server.sock"));
    for address in [unix.clone(), "127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()] {
        let listener = match Listener::bind(&address).await {
            // A host without IPv6 has nothing to be tested there.
            Err(error) if address.to_string().starts_with('[') => {
                println!("not tested on this host: {error}");
                continue;
            }
            result => result.unwrap(),
        };
        let server = async {
            let (mut connection, peer) = accept(listener.accept().await?, None).await?;
            assert_eq!(peer, Peer::Local);
            assert_eq!(connection.recv().await?, Some(AgentMessage::Goodbye));
            connection.send(&ServerMessage::Resume).await
        };
        let agent = async {
            let mut connection = connect(listener.address(), None).await?;
            connection.send(&AgentMessage::Goodbye).await?;
            assert_eq!(connection.recv().await?, Some(ServerMessage::Resume));
            Ok(())
        };
        tokio::try_join!(server, agent).unwrap();
        if address == unix {
            assert_eq!(Listener::bind(&unix).await.unwrap_err().kind(), ErrorKind::Busy);
        }
    }
    assert!(!folder.path().join("server.sock").exists(), "the socket goes with its listener");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Listener::bind(&Address::Unix(path)).await.unwrap());
    let path = folder.path().join("file");
    std::fs::write(&path, b"kept").unwrap();
    let error = Listener::bind(&Address::Unix(path.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(path).unwrap(), b"kept");
}

#[tokio::test]
async fn tls_to_a_plain_listener_and_a_silent_peer_are_refused() {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let Address::Tcp { port, .. } = listener.address() else { panic!("TCP was asked for") };
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    let error = accept(listener.accept().await.unwrap(), None).await.unwrap_err();
    assert!(error.to_string().contains("has no certificate"), "{error}");
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap_or(0), 0);

    drop(tokio::net::TcpStream::connect(("127.0.0.1", *port)).await.unwrap());
    let error = accept(listener.accept().await.unwrap(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}
