//! The whole way over real sockets: a token, a certificate, a connection; and everybody who must stay outside.

use super::*;
use blocks::{BlockShift, ByteLen, ByteOffset, DiskIndex, Extent, Id, Seq};
use std::os::unix::fs::PermissionsExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::ring,
};
use wire::{
    Address, AgentConnection, AgentIdentity, AgentMessage, Connection, Listener, Payload, PeerIdentity,
    SERVER_NAME, TokenSecret, Write, accept, connect, enroll, refused_identity,
};

const HOUR: Duration = TOKEN_TTL_DEFAULT;

/// A server that enrolls, that refuses who may not enter, and echoes an acknowledgement for each write.
struct TestServer {
    folder: tempfile::TempDir,
    authority: Arc<Authority>,
    address: Address,
    task: tokio::task::JoinHandle<()>,
    ended: tokio::sync::mpsc::UnboundedReceiver<(Option<Peer>, Result<()>)>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    async fn start() -> TestServer {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(folder.path()).unwrap());
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.address().clone();
        let (report, ended) = tokio::sync::mpsc::unbounded_channel();
        let served = authority.clone();
        let task = tokio::spawn(async move {
            while let Ok(incoming) = listener.accept().await {
                let (authority, report) = (served.clone(), report.clone());
                tokio::spawn(async move {
                    let acceptor = authority.tls_acceptor();
                    let _ = match accept(incoming, Some(&acceptor)).await {
                        Ok((connection, peer)) => {
                            let result = serve(&authority, connection).await;
                            report.send((Some(peer), result))
                        }
                        Err(error) => report.send((None, Err(error))),
                    };
                });
            }
        });
        TestServer { folder, authority, address, task, ended }
    }

    /// How the next connection ended, as the server saw it.
    async fn end(&mut self) -> (Option<Peer>, Result<()>) {
        tokio::time::timeout(Duration::from_secs(20), self.ended.recv()).await.unwrap().unwrap()
    }

    async fn enrolled(&mut self, name: &str, state: &Path) -> AgentIdentity {
        let token = self.authority.issue_token(TokenFor::Any, HOUR).unwrap();
        let identity = enroll(&self.address, &token, name, state).await.unwrap();
        self.end().await.1.unwrap();
        identity
    }

    /// The two halves of a handshake that must fail, as the agent and as the server see it.
    async fn refused(&mut self, identity: &AgentIdentity) -> (Error, Error) {
        let mut connection = connect(&self.address, Some(identity)).await.unwrap();
        let here = connection.recv().await.unwrap_err();
        (here, self.end().await.1.unwrap_err())
    }
}

async fn serve(authority: &Authority, mut connection: wire::ServerConnection) -> Result<()> {
    while let Some(message) = connection.recv().await? {
        match message {
            AgentMessage::Enroll(request) => connection.send(&authority.answer(&request)).await?,
            AgentMessage::Write(write) => {
                connection.send(&ServerMessage::Ack { disk: write.disk, seq: write.seq }).await?;
            }
            other => panic!("no test sends {other:?}"),
        }
    }
    Ok(())
}

fn write(seq: u64, bytes: usize) -> AgentMessage {
    let extent = Extent::new(ByteOffset::new(seq << 20), ByteLen::new(bytes as u64)).unwrap();
    assert!(extent.is_aligned(BlockShift::SECTOR));
    let payload = Payload::Data((0..bytes).map(|at| (at * 31 + seq as usize) as u8).collect());
    AgentMessage::Write(Write { disk: DiskIndex(0), seq: Seq(seq), extent, payload })
}

fn machine(byte: u8) -> MachineId {
    MachineId(Id::from_bytes([byte; 16]).unwrap())
}

fn peer_of(identity: &AgentIdentity) -> Peer {
    Peer::Machine(PeerIdentity {
        name: identity.name().to_owned(),
        machine: None,
        certificate: identity.certificate(),
    })
}

/// What of an identity's file a TLS client of another make needs.
fn field(state: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(AgentIdentity::path(state)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json[name].as_str().unwrap().to_owned()
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn key(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A TLS client without any code of ours: trusts `authority_pem`, shows the identity in `state`, or nothing.
async fn foreign_client(
    address: &Address,
    authority_pem: &str,
    state: Option<&Path>,
    version: &'static SupportedProtocolVersion,
) -> std::io::Result<AgentConnection> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(authority_pem)).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = match state {
        None => config.with_no_client_auth(),
        Some(state) => {
            let chain = vec![certificate(&field(state, "certificate_pem"))];
            config.with_client_auth_cert(chain, key(&field(state, "key_pem"))).unwrap()
        }
    };
    let stream = TcpStream::connect(address.to_string()).await?;
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(Connection::new(stream, "the server"))
}

#[tokio::test]
async fn a_token_becomes_a_certificate_becomes_a_connection() {
    let mut server = TestServer::start().await;
    let state = tempfile::tempdir().unwrap();
    let state = state.path().join("made/by/enroll");
    let enrolled = server.enrolled("web-1", &state).await;

    let identity = AgentIdentity::load(&state).unwrap();
    assert_eq!((identity.name(), identity.certificate()), ("web-1", enrolled.certificate()));
    assert_eq!(identity.authority().unwrap(), server.authority.fingerprint());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&AgentIdentity::path(&state)), 0o600);
    assert_eq!(mode(&server.folder.path().join("authority.json")), 0o600);
    assert_eq!(mode(server.folder.path()) & 0o077, 0);

    server.authority.bind(&peer_of(&identity), machine(7)).unwrap();
    let mut connection = connect(&server.address, Some(&identity)).await.unwrap();
    for seq in 1..=8 {
        connection.send(&write(seq, 1 << 20)).await.unwrap();
        let answer = connection.recv().await.unwrap().unwrap();
        assert_eq!(answer, ServerMessage::Ack { disk: DiskIndex(0), seq: Seq(seq) });
    }
    connection.close().await.unwrap();
    let (peer, result) = server.end().await;
    result.unwrap();
    let known =
        PeerIdentity { name: "web-1".into(), machine: Some(machine(7)), certificate: identity.certificate() };
    assert_eq!(peer, Some(Peer::Machine(known)));
}

#[tokio::test]
async fn without_a_certificate_nothing_but_an_enrolment_is_heard() {
    let mut server = TestServer::start().await;
    let authority_pem = server.authority.issuer.certificate_pem().to_owned();
    let mut connection = foreign_client(&server.address, &authority_pem, None, &TLS13).await.unwrap();
    connection.send(&write(1, 512)).await.unwrap();
    let (peer, result) = server.end().await;
    assert_eq!(peer, Some(Peer::Stranger));
    assert!(result.unwrap_err().to_string().contains("without a certificate, who may only enroll"));
    assert!(!matches!(connection.recv().await, Ok(Some(_))));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let mut server = TestServer::start().await;
    let authority_pem = server.authority.issuer.certificate_pem().to_owned();
    let error = foreign_client(&server.address, &authority_pem, None, &TLS12).await.err().unwrap();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    let (peer, result) = server.end().await;
    assert!(peer.is_none());
    result.unwrap_err();
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let (mut ours, mut other) = (TestServer::start().await, TestServer::start().await);
    let state = tempfile::tempdir().unwrap();
    let identity = ours.enrolled("web-1", state.path()).await;

    let error = connect(&other.address, Some(&identity)).await.unwrap_err();
    assert!(refused_identity(&error), "{error}");
    assert!(error.to_string().contains("is not the server that this agent was enrolled with"), "{error}");
    other.end().await.1.unwrap_err();

    // A client that does not mind gets no further: the server does.
    let other_pem = other.authority.issuer.certificate_pem().to_owned();
    let mut connection =
        foreign_client(&other.address, &other_pem, Some(state.path()), &TLS13).await.unwrap();
    let error = connection.recv().await.unwrap_err();
    assert!(refused_identity(&error), "{error}");
    assert!(other.end().await.0.is_none());
}

#[tokio::test]
async fn an_agent_s_certificate_makes_no_server() {
    let mut server = TestServer::start().await;
    let (state, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    server.enrolled("understudy-server", state.path()).await;
    let victim = server.enrolled("victim", victim.path()).await;
    let chain = vec![
        certificate(&field(state.path(), "certificate_pem")),
        certificate(server.authority.issuer.certificate_pem()),
    ];
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key(&field(state.path(), "key_pem")))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let false_server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.map(drop)
    });
    let error = connect(&address, Some(&victim)).await.unwrap_err();
    assert!(refused_identity(&error), "{error}");
    false_server.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_from_then_on() {
    let mut server = TestServer::start().await;
    let state = tempfile::tempdir().unwrap();
    let identity = server.enrolled("web-1", state.path()).await;
    let mut before = connect(&server.address, Some(&identity)).await.unwrap();
    before.send(&write(1, 512)).await.unwrap();
    before.recv().await.unwrap().unwrap();
    server.authority.authorize(&peer_of(&identity), "web-1", None).unwrap();

    server.authority.revoke("web-1").unwrap();
    server.authority.revoke("web-1").unwrap();
    let (here, there) = server.refused(&identity).await;
    assert!(refused_identity(&here), "{here}");
    assert!(there.to_string().contains("Revoked"), "{there}");
    let error = server.authority.authorize(&peer_of(&identity), "web-1", None).unwrap_err();
    assert!(error.to_string().contains("revoked"), "what is connected already is told too: {error}");
    assert_eq!(server.authority.revoke("nobody").unwrap_err().kind(), ErrorKind::NotFound);

    // Not by a new connection to a restarted server either, and an unnamed token does not bring the name back.
    let unnamed = server.authority.issue_token(TokenFor::Any, HOUR).unwrap();
    let error = enroll(&server.address, &unnamed, "web-1", state.path()).await.unwrap_err();
    assert!(error.to_string().contains("has been enrolled before"), "{error}");
    server.end().await.1.unwrap();
    let named = server.authority.issue_token(TokenFor::Named("web-1".into()), HOUR).unwrap();
    let error = enroll(&server.address, &named, "web-2", state.path()).await.unwrap_err();
    assert!(error.to_string().contains("this token is for 'web-1'"), "{error}");
    server.end().await.1.unwrap();
    let renewed = enroll(&server.address, &named, "web-1", state.path()).await.unwrap();
    server.end().await.1.unwrap();
    assert_ne!(renewed.certificate(), identity.certificate());
    let (here, _) = server.refused(&identity).await;
    assert!(refused_identity(&here), "the replaced certificate stays refused: {here}");
    server.authority.authorize(&peer_of(&renewed), "web-1", None).unwrap();
}

#[tokio::test]
async fn a_rescue_system_speaks_for_the_machine_until_the_machine_does() {
    let mut server = TestServer::start().await;
    let (state, rescue) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let for_rescue = || TokenFor::Rescue("web-1".into());
    assert_eq!(server.authority.issue_token(for_rescue(), HOUR).unwrap_err().kind(), ErrorKind::NotFound);
    let identity = server.enrolled("web-1", state.path()).await;
    server.authority.bind(&peer_of(&identity), machine(1)).unwrap();

    let token = server.authority.issue_token(for_rescue(), HOUR).unwrap();
    let rescuer = enroll(&server.address, &token, "web-1", rescue.path()).await.unwrap();
    server.end().await.1.unwrap();
    let kept = Machines::open(&server.folder.path().join("machines")).unwrap().of_name("web-1").unwrap();
    let certificates = (kept.certificate, kept.rescue);
    assert_eq!(certificates, (identity.certificate(), Some(rescuer.certificate())), "on the medium");
    for each in [&identity, &rescuer] {
        server.authority.authorize(&peer_of(each), "web-1", Some(machine(1))).unwrap();
    }
    server.authority.bind(&peer_of(&rescuer), machine(1)).unwrap();
    server.authority.authorize(&peer_of(&rescuer), "web-1", Some(machine(1))).unwrap();
    // The machine has come home.
    server.authority.bind(&peer_of(&identity), machine(1)).unwrap();
    let error = server.authority.authorize(&peer_of(&rescuer), "web-1", None).unwrap_err();
    assert!(error.to_string().contains("revoked or replaced"), "{error}");
    server.authority.authorize(&peer_of(&identity), "web-1", Some(machine(1))).unwrap();

    // Whoever revokes a machine revokes its rescue system, and a token that was given out before is worth nothing.
    let token = server.authority.issue_token(for_rescue(), HOUR).unwrap();
    let late = server.authority.issue_token(for_rescue(), HOUR).unwrap();
    let rescuer = enroll(&server.address, &token, "web-1", rescue.path()).await.unwrap();
    server.end().await.1.unwrap();
    server.authority.revoke("web-1").unwrap();
    assert!(server.authority.authorize(&peer_of(&rescuer), "web-1", None).is_err());
    assert!(enroll(&server.address, &late, "web-1", rescue.path()).await.is_err());
}

#[tokio::test]
async fn a_token_is_good_once() {
    let mut server = TestServer::start().await;
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token = server.authority.issue_token(TokenFor::Any, HOUR).unwrap();
    enroll(&server.address, &token, "first", first.path()).await.unwrap();
    let error = enroll(&server.address, &token, "second", second.path()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("the token was used already"), "{error}");
    assert!(!AgentIdentity::path(second.path()).exists());
    assert_eq!(AgentIdentity::load(second.path()).unwrap_err().kind(), ErrorKind::NotFound);

    // Nothing in the folder lets the secret be found again.
    let secret = token.secret();
    for entry in std::fs::read_dir(server.folder.path().join("tokens")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains(&secret.to_text()) && !text.contains(secret.hash().to_hex().as_str()));
    }
    server.end().await.1.unwrap();
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let server = TestServer::start().await;
    let state = tempfile::tempdir().unwrap();
    let token = server.authority.issue_token(TokenFor::Any, Duration::ZERO).unwrap();
    let error = enroll(&server.address, &token, "late", state.path()).await.unwrap_err();
    assert!(error.to_string().contains("the token has expired"), "{error}");
    assert!(server.authority.machines().is_empty());
}

#[tokio::test]
async fn a_token_for_another_authority_never_shows_its_secret() {
    let mut server = TestServer::start().await;
    let state = tempfile::tempdir().unwrap();
    let token = server.authority.issue_token(TokenFor::Any, HOUR).unwrap();
    let mut fingerprint = token.authority().to_bytes();
    fingerprint[31] ^= 1;
    let tampered = Token::new(Fingerprint::from_bytes(fingerprint), token.secret().clone(), None);
    let error = enroll(&server.address, &tampered, "web-1", state.path()).await.unwrap_err();
    assert!(refused_identity(&error), "{error}");
    let (peer, result) = server.end().await;
    assert!(peer.is_none(), "the handshake did not end, so no message was heard");
    result.unwrap_err();
    enroll(&server.address, &token, "web-1", state.path()).await.unwrap();
}

#[tokio::test]
async fn a_guessed_secret_is_refused_and_uses_nothing_up() {
    let server = TestServer::start().await;
    let state = tempfile::tempdir().unwrap();
    let token = server.authority.issue_token(TokenFor::Any, HOUR).unwrap();
    let id: [u8; 8] =
        std::array::from_fn(|at| u8::from_str_radix(&token.secret().id()[2 * at..2 * at + 2], 16).unwrap());
    for guessed in [TokenSecret::new(id, [1; 16]), TokenSecret::new([1; 8], [1; 16])] {
        let guessed = Token::new(token.authority(), guessed, None);
        let error = enroll(&server.address, &guessed, "web-1", state.path()).await.unwrap_err();
        assert!(error.to_string().contains("is not one that this server gave out"), "{error}");
    }
    enroll(&server.address, &token, "web-1", state.path()).await.unwrap();
}

#[test]
fn only_one_of_many_at_once_gets_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let secret = authority.issue_token(TokenFor::Any, HOUR).unwrap().secret().to_text();
    let enrolled: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|number| {
                let name = format!("machine-{number}");
                let request = request(&secret, &name, &name);
                let authority = &authority;
                scope.spawn(move || usize::from(authority.enroll(&request).is_ok()))
            })
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert_eq!((enrolled, authority.machines().len()), (1, 1));
}

fn request(secret: &str, name: &str, in_request: &str) -> EnrollRequest {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, in_request);
    let key = rcgen::KeyPair::generate().unwrap();
    let request_pem = params.serialize_request(&key).unwrap().pem().unwrap();
    EnrollRequest { secret: secret.to_owned(), name: name.to_owned(), request_pem }
}

#[test]
fn a_bad_request_does_not_use_the_token_up() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let secret = authority.issue_token(TokenFor::Any, HOUR).unwrap().secret().to_text();
    let good = request(&secret, "web-1", "web-1");
    let forged = {
        // The last byte belongs to the signature, which then is no proof of having the key.
        let mut der = rustls_pem(&good.request_pem);
        *der.last_mut().unwrap() ^= 1;
        to_pem(&der)
    };
    let with_request =
        |request_pem: &str| EnrollRequest { request_pem: request_pem.to_owned(), ..good.clone() };
    for (bad, why) in [
        (request(&secret, "../web-1", "../web-1"), "is not a machine name"),
        (request(&secret, "web-1", "db-1"), "the signing request is for 'db-1'"),
        (with_request(&forged), "the signing request cannot be accepted"),
        (with_request("no request"), "the signing request cannot be accepted"),
        (EnrollRequest { secret: "short".into(), ..good.clone() }, "malformed"),
    ] {
        let error = authority.enroll(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(why), "{error}");
    }
    authority.enroll(&good).unwrap();
}

fn rustls_pem(pem: &str) -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::CertificateSigningRequestDer;
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn to_pem(der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for (line, chunk) in der.chunks(3).enumerate() {
        let bits =
            chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value]) } else { '=' });
        }
        if line % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END CERTIFICATE REQUEST-----\n"
}

#[test]
fn an_authority_is_the_same_after_a_restart_and_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let fingerprint = authority.fingerprint();
    assert_eq!(Authority::open(folder.path()).unwrap_err().kind(), ErrorKind::Busy);
    let used = authority.issue_token(TokenFor::Any, HOUR).unwrap().secret().to_text();
    let unused = authority.issue_token(TokenFor::Named("db-1".into()), HOUR).unwrap().secret().to_text();
    authority.enroll(&request(&used, "web-1", "web-1")).unwrap();
    let certificate = authority.machines()[0].certificate;
    let peer = Peer::Machine(PeerIdentity { name: "web-1".into(), machine: None, certificate });
    authority.bind(&peer, machine(1)).unwrap();
    let machines = authority.machines();
    drop(authority);

    let authority = Authority::open(folder.path()).unwrap();
    assert_eq!((authority.fingerprint(), authority.machines()), (fingerprint, machines));
    authority.enroll(&request(&used, "web-2", "web-2")).unwrap_err();
    authority.enroll(&request(&unused, "db-1", "db-1")).unwrap();
    authority.revoke("web-1").unwrap();
    drop(authority);

    let authority = Authority::open(folder.path()).unwrap();
    assert!(authority.authorize(&peer, "web-1", Some(machine(1))).is_err(), "revoked for good");
    drop(authority);
    std::fs::write(folder.path().join("machines/web-1.json"), b"{").unwrap();
    let error = Authority::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("web-1.json"), "{error}");
}

#[test]
fn a_token_whose_use_was_cut_short_by_a_crash_stays_used() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let secret = authority.issue_token(TokenFor::Any, HOUR).unwrap();
    let file = folder.path().join(format!("tokens/{}.json", secret.secret().id()));
    let before = std::fs::read(&file).unwrap();
    authority.enroll(&request(&secret.secret().to_text(), "web-1", "web-1")).unwrap();
    assert!(!file.exists());
    std::fs::write(&file, before).unwrap();
    let error = authority.enroll(&request(&secret.secret().to_text(), "web-2", "web-2")).unwrap_err();
    assert!(error.to_string().contains("used already"), "{error}");
}

#[test]
fn a_peer_is_only_the_machine_that_its_certificate_says() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let enrolled = |name: &str| {
        let secret = authority.issue_token(TokenFor::Any, HOUR).unwrap().secret().to_text();
        let reply = authority.enroll(&request(&secret, name, name)).unwrap();
        let certificate = Fingerprint::of_pem(&reply.certificate_pem).unwrap();
        Peer::Machine(PeerIdentity { name: name.into(), machine: None, certificate })
    };
    let (web, db) = (enrolled("web-1"), enrolled("db-1"));
    let allowed = |peer: &Peer, name: &str, machine| authority.authorize(peer, name, machine).is_ok();
    assert!(allowed(&web, "web-1", None) && allowed(&web, "web-1", Some(machine(1))));
    authority.bind(&web, machine(1)).unwrap();
    authority.bind(&web, machine(1)).unwrap();
    assert!(allowed(&web, "web-1", None) && allowed(&web, "web-1", Some(machine(1))));
    assert!(!allowed(&web, "web-1", Some(machine(2))), "another machine's identity");
    assert!(!allowed(&web, "db-1", None), "another machine's name");
    assert!(!allowed(&db, "db-1", Some(machine(1))), "an identity that has another certificate");
    assert!(authority.bind(&db, machine(1)).is_err() && authority.bind(&web, machine(2)).is_err());
    assert!(allowed(&Peer::Local, "plain", None) && allowed(&Peer::Local, "plain", Some(machine(3))));
    assert!(!allowed(&Peer::Local, "web-1", None), "an enrolled machine without its certificate");
    assert!(!allowed(&Peer::Local, "plain", Some(machine(1))));
    assert!(!allowed(&Peer::Stranger, "plain", None));
    authority.revoke("web-1").unwrap();
    assert!(!allowed(&Peer::Local, "web-1", None), "revoked is not free");
    authority.bind(&Peer::Local, machine(9)).unwrap();
}
