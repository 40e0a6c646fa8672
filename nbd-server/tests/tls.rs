//! Encryption, certificates and who may open what, with clients that others wrote (GnuTLS and OpenSSL) and with ours.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod common;

use blocks::{ByteLen, ByteOffset, ErrorKind, MemoryVolume, RequestClass, Volume};
use common::certificates::Authority;
use common::raw::{ACK, ERR_INVALID, ERR_POLICY, ERR_TLS_REQD, Raw, blob};
use common::{MIB, Served, patterned, run, succeed};
use nbd_server::{
    Access, AccessRule, Export, Exports, Limits, NbdVolume, ServerOptions, ServerTls, TlsFiles,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Lets libnbd's shell read the certificates that a URI names.
const LOCAL: &str = "h.set_uri_allow_local_file(True)\n";

struct Scene {
    served: Served,
    disk: Arc<MemoryVolume>,
    pki: tempfile::TempDir,
    authority: Authority,
}

/// Exports `disk` and `other` of one authority; `clients` asks them for certificates.
fn scene(required: bool, clients: bool, access: Access) -> Scene {
    scene_with(required, clients, access, Duration::from_secs(60))
}

/// The same for clients that have so long for their handshake.
fn scene_with(required: bool, clients: bool, access: Access, handshake_timeout: Duration) -> Scene {
    let pki = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let dir = authority.write(&pki.path().join("server"), "server", "localhost");
    let files = TlsFiles {
        certificate: dir.join("server-cert.pem"),
        key: dir.join("server-key.pem"),
        client_authorities: clients.then(|| dir.join("ca-cert.pem")),
    };
    let disk = Arc::new(MemoryVolume::new(ByteLen::new(8 * MIB)));
    let exports = Exports::new();
    exports.insert("disk", Export::new(disk.clone())).unwrap();
    let other = Arc::new(MemoryVolume::new(ByteLen::new(MIB)));
    exports.insert("other", Export::new(other)).unwrap();
    let limits = Limits { handshake_timeout, ..Limits::default() };
    let tls = Some(ServerTls::load(&files, required).unwrap());
    let options = ServerOptions { limits, tls, access, ..ServerOptions::default() };
    Scene { served: Served::with_options(exports, options), disk, pki, authority }
}

impl Scene {
    fn client(&self, name: &str) -> PathBuf {
        self.authority.write(&self.pki.path().join(name), "client", name)
    }

    /// A folder of a client that believes in the authority and shows nothing.
    fn anonymous(&self) -> PathBuf {
        let dir = self.client("anonymous");
        fs::remove_file(dir.join("client-cert.pem")).unwrap();
        fs::remove_file(dir.join("client-key.pem")).unwrap();
        dir
    }

    /// Encrypted URIs of an export, over TCP and over the unix socket.
    fn uris(&self, export: &str, certificates: &Path) -> [String; 2] {
        let certificates = certificates.display();
        self.served.uris().map(|uri| {
            let uri = uri.replacen("nbd", "nbds", 1).replace("/disk", &format!("/{export}"));
            let mark = if uri.contains('?') { "&tls-hostname=localhost&" } else { "?" };
            format!("{uri}{mark}tls-certificates={certificates}")
        })
    }
}

fn rule(client: &str, exports: &[&str], read_only: bool) -> AccessRule {
    let exports = exports.iter().map(|export| (*export).to_owned()).collect();
    AccessRule { client: client.into(), exports, read_only }
}

#[test]
fn libnbds_tools_and_python_work_over_tls() {
    let scene = scene(true, true, Access::default());
    let certificates = scene.client("backup");
    for (way, uri) in scene.uris("disk", &certificates).iter().enumerate() {
        let info = succeed("nbdinfo", &[uri]);
        assert!(info.contains("with TLS"), "{info}");
        let list = succeed("nbdinfo", &["--list", uri]);
        assert!(list.contains("disk") && list.contains("other"), "{list}");
        let (source, back) = (scene.served.path("source"), scene.served.path("back"));
        fs::write(&source, patterned(8 * MIB, way as u64)).unwrap();
        succeed("nbdcopy", &["--flush", &source, uri]);
        assert!(scene.disk.snapshot() == fs::read(&source).unwrap());
        let _ = fs::remove_file(&back);
        succeed("nbdcopy", &[uri, &back]);
        succeed("cmp", &[&source, &back]);
        let script = format!(
            "h.set_uri_allow_local_file(True)\nh.connect_uri('{uri}')\nassert h.get_tls_negotiated()\nh.pwrite(b'z' * 700000, 123)\n\
             assert h.pread(700002, 122)[1:-1] == b'z' * 700000\nh.flush()\nh.shutdown()\n"
        );
        succeed("nbdsh", &["-c", &script]);
    }
}

/// nbdfuse 1.14 refuses a URI that names a folder of certificates, and root's come from /etc alone: it gets an /etc of its own.
#[test]
fn nbdfuse_works_over_tls() {
    const SCRIPT: &str = "
        mount --bind $1 /etc
        nbdfuse $2/disk $3 & nbdfuse=$!
        while ! test -e $2/disk; do kill -0 $nbdfuse; sleep 0.05; done
        cmp $2/disk $4
        printf encrypted | dd of=$2/disk bs=1 seek=4097 conv=notrunc,fsync status=none
        fusermount3 -u $2
        wait $nbdfuse";
    let scene = scene(true, true, Access::default());
    scene.authority.write(&scene.pki.path().join("etc/pki/libnbd"), "client", "backup");
    let (source, etc) = (scene.served.path("source"), scene.pki.path().join("etc"));
    let folder = scene.served.path("mounted");
    fs::create_dir(&folder).unwrap();
    for uri in scene.uris("disk", Path::new("none")) {
        fs::write(&source, scene.disk.snapshot()).unwrap();
        let uri = uri.replace("?tls-certificates=none", "").replace("&tls-certificates=none", "");
        let etc = etc.to_str().unwrap();
        succeed("unshare", &["--mount", "sh", "-ec", SCRIPT, "nbdfuse", etc, &folder, &uri, &source]);
        let mut expected = fs::read(&source).unwrap();
        expected[4097..4106].copy_from_slice(b"encrypted");
        assert!(scene.disk.snapshot() == expected);
        scene.disk.write_at(ByteOffset::ZERO, &[5; 8192], false, RequestClass::Guest).unwrap();
    }
}

#[test]
fn exchanged_certificates_are_used_by_the_next_handshake() {
    let scene = scene(true, true, Access::default());
    let old = scene.client("backup");
    let works = |dir: &Path| run("nbdinfo", &["--size", &scene.uris("disk", dir)[0]]).status.success();
    assert!(works(&old));
    let mut before = Raw::greeted(scene.served.tcp_port());
    let server = scene.pki.path().join("server");
    fs::write(server.join("server-key.pem"), "half a").unwrap();
    assert!(works(&old), "what cannot be used does not end what can");

    let other = Authority::new();
    let new = other.write(&scene.pki.path().join("new-client"), "client", "backup");
    let made = other.write(&scene.pki.path().join("new-server"), "server", "localhost");
    for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        fs::rename(made.join(file), server.join(file)).unwrap();
    }
    assert!(works(&new), "the new authority's client");
    assert!(!works(&old), "the old authority's client");
    assert_eq!(before.option(2, &[]).0, ACK, "whoever was connected stays so");
}

#[test]
fn qemu_works_over_tls_and_refuses_without() {
    let scene = scene(true, true, Access::default());
    let certificates = scene.client("hypervisor");
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", certificates.display());
    let options = format!(
        "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export=disk,tls-creds=tls0",
        scene.served.tcp_port()
    );
    let info = succeed("qemu-img", &["info", "--object", &object, "--image-opts", &options]);
    assert!(info.contains("8 MiB"), "{info}");
    let commands = ["-c", "write -P 7 1M 3M", "-c", "read -P 7 1M 3M", "-c", "flush"];
    let base = ["--object", object.as_str(), "--image-opts", options.as_str()];
    let said = succeed("qemu-io", &[&commands[..], &base[..]].concat());
    assert!(!said.contains("failed"), "{said}");
    assert!(scene.disk.snapshot()[1 << 20..4 << 20].iter().all(|byte| *byte == 7));
    let plain = run("qemu-img", &["info", &scene.served.tcp()]);
    assert!(!plain.status.success() && plain.stderr.contains("TLS"), "{}", plain.stderr);
}

#[test]
fn nbd_client_lists_over_tls_and_is_refused_without_where_that_is_no_choice() {
    for required in [false, true] {
        let scene = scene(required, true, Access::default());
        let dir = scene.client("lister");
        let file = |name: &str| dir.join(name).display().to_string();
        let port = scene.served.tcp_port().to_string();
        let (authority, certificate, key) =
            (file("ca-cert.pem"), file("client-cert.pem"), file("client-key.pem"));
        let tls = [
            "-cacertfile",
            &authority,
            "-certfile",
            &certificate,
            "-keyfile",
            &key,
            "-tlshostname",
            "localhost",
        ];
        let plain = ["-l", "127.0.0.1", port.as_str()];
        let listed = |args: &[&str]| {
            let ran = run("nbd-client", args);
            ran.stdout.contains("disk") && ran.stdout.contains("other")
        };
        assert_eq!(listed(&plain), !required);
        assert!(listed(&[&plain[..], &tls[..]].concat()), "required: {required}");
    }
}

#[test]
fn required_tls_answers_nothing_before_it() {
    let scene = scene(true, false, Access::default());
    let mut raw = Raw::greeted(scene.served.tcp_port());
    for option in [3, 6, 7, 8, 9, 10, 11, 99] {
        assert_eq!(raw.option(option, b"").0, ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(raw.option(2, b"").0, ACK);
    let mut raw = Raw::greeted(scene.served.tcp_port());
    raw.send_option(1, b"disk");
    assert!(raw.is_closed(), "EXPORT_NAME cannot be refused");
    let mut raw = Raw::greeted(scene.served.tcp_port());
    assert_eq!(raw.option(5, b"x").0, ERR_INVALID, "STARTTLS has no data");
    assert_eq!(raw.option(5, b"").0, ACK);
    raw.send(b"this is no handshake of TLS at all, and long enough to be seen as none");
    assert!(raw.is_closed());
    for uri in scene.uris("disk", &scene.anonymous()) {
        succeed("nbdinfo", &[&uri]);
    }
}

#[test]
fn offered_tls_is_the_clients_choice_and_forgets_what_was_said_in_the_clear() {
    let scene = scene(false, false, Access::default());
    succeed("nbdinfo", &[&scene.served.tcp()]);
    let mut raw = Raw::greeted(scene.served.tcp_port());
    assert_eq!(raw.option(8, b"").0, ACK);
    assert_eq!(raw.option(10, &[blob(b"disk"), vec![0, 0, 0, 1], blob(b"base:allocation")].concat()).0, ACK);
    assert_eq!(raw.option(5, b"").0, ACK);
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(scene.anonymous().join("ca-cert.pem")).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let session = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(session, raw.0);
    let mut ask = |option: u32, data: &[u8]| {
        stream.write_all(&[b"IHAVEOPT", &option.to_be_bytes()[..], &blob(data)].concat()).unwrap();
        let mut head = [0; 20];
        stream.read_exact(&mut head).unwrap();
        let (kind, len) = (&head[12..16], u32::from_be_bytes(head[16..].try_into().unwrap()));
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
        u32::from_be_bytes(kind.try_into().unwrap())
    };
    assert_eq!(ask(5, b""), ERR_INVALID, "it is encrypted already");
    assert_eq!(
        ask(9, &[blob(b"disk"), vec![0; 4]].concat()),
        ERR_INVALID,
        "structured replies are forgotten"
    );
    assert_eq!(ask(2, b""), ACK);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the session is closed in order");
    // Without the bit that says fixed newstyle, there is no TLS.
    let mut raw = Raw::connect(scene.served.tcp_port());
    raw.take(18);
    raw.send(&2u32.to_be_bytes());
    assert_eq!(raw.option(5, b"").0, ERR_POLICY);
}

#[test]
fn a_client_without_a_certificate_or_with_a_strangers_gets_nowhere() {
    let scene = scene(true, true, Access::default());
    let stranger = Authority::new().write(&scene.pki.path().join("stranger"), "client", "backup");
    fs::copy(scene.client("known").join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    for certificates in [scene.anonymous(), stranger] {
        for uri in scene.uris("disk", &certificates) {
            assert!(!run("nbdinfo", &["--size", &uri]).status.success(), "{uri}");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while scene.served.server.connections() > 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn names_open_what_their_rules_say_and_nothing_else_exists_for_them() {
    let rules = vec![rule("hypervisor", &["disk"], false), rule("backup", &["*"], true)];
    let scene = scene(true, true, Access::only(rules));
    let (hypervisor, backup, nobody) =
        (scene.client("hypervisor"), scene.client("backup"), scene.client("nobody"));
    let [disk, _] = scene.uris("disk", &hypervisor);
    succeed("nbdsh", &["-c", &format!("{LOCAL}h.connect_uri('{disk}')\nh.pwrite(b'x' * 512, 0)")]);
    let list = succeed("nbdinfo", &["--list", &disk]);
    assert!(list.contains("export=\"disk\"") && !list.contains("other"), "{list}");
    let [other, _] = scene.uris("other", &hypervisor);
    let refused = run("nbdinfo", &[&other]);
    assert!(!refused.status.success() && refused.stderr.contains("No such file"), "{}", refused.stderr);
    let [disk, _] = scene.uris("disk", &backup);
    let script = format!(
        "{LOCAL}import errno\nh.set_strict_mode(0)\nh.connect_uri('{disk}')\nassert h.is_read_only()\n\
         assert h.pread(512, 0) == b'x' * 512\ntry:\n    h.pwrite(b'y' * 512, 0)\n    assert False\n\
         except nbd.Error as error:\n    assert error.errnum == errno.EPERM\n"
    );
    succeed("nbdsh", &["-c", &script]);
    assert_eq!(scene.disk.snapshot()[..512], [b'x'; 512]);
    assert!(!run("nbdinfo", &[&scene.uris("disk", &nobody)[0]]).status.success());
}

#[test]
fn our_own_client_encrypts_too() {
    let scene = scene(true, true, Access::default());
    let certificates = scene.client("understudy");
    for uri in scene.uris("disk", &certificates) {
        let volume = NbdVolume::connect(&uri.parse().unwrap()).unwrap();
        let data = patterned(3 * MIB, 8);
        volume.write_at(ByteOffset::new(MIB), &data, true, RequestClass::Background).unwrap();
        let mut back = vec![0; data.len()];
        volume.read_at(ByteOffset::new(MIB), &mut back, RequestClass::Background).unwrap();
        assert!(data == back);
    }
    let plain = NbdVolume::connect(&scene.served.tcp().parse().unwrap()).unwrap_err();
    assert!(plain.to_string().contains("STARTTLS"), "{plain}");
    let blind = scene.served.tcp().replacen("nbd", "nbds", 1);
    let error = NbdVolume::connect(&blind.parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let wrong_authority = Authority::new().write(&scene.pki.path().join("wrong"), "client", "understudy");
    let error = NbdVolume::connect(&scene.uris("disk", &wrong_authority)[0].parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("encryption"), "{error}");
}

#[test]
fn a_tls_client_that_is_silent_or_drips_runs_into_the_handshakes_deadline() {
    let scene = scene_with(true, false, Access::default(), Duration::from_secs(3));
    let mut silent = Raw::greeted(scene.served.tcp_port());
    assert_eq!(silent.option(5, b"").0, ACK);
    let mut dripping = Raw::greeted(scene.served.tcp_port());
    assert_eq!(dripping.option(5, b"").0, ACK);
    // The head of a record of 16 KiB, and then a byte now and then.
    dripping.send(&[22, 3, 1, 0x40, 0]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(90) && dripping.0.write_all(&[1]).is_ok() {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "bytes now and then do not buy time");
    assert!(silent.is_closed());
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let one = authority.write(&dir.path().join("one"), "server", "localhost");
    let two = authority.write(&dir.path().join("two"), "server", "localhost");
    let load = |certificate: PathBuf, key: PathBuf, client_authorities: Option<PathBuf>| {
        ServerTls::load(&TlsFiles { certificate, key, client_authorities }, true).map(|_| ())
    };
    let (certificate, key) = (one.join("server-cert.pem"), one.join("server-key.pem"));
    load(certificate.clone(), key.clone(), Some(one.join("ca-cert.pem"))).unwrap();
    for (certificate, key, authorities, named) in [
        (certificate.clone(), two.join("server-key.pem"), None, "server-cert.pem"),
        (one.join("nothing.pem"), key.clone(), None, "nothing.pem"),
        (key.clone(), key.clone(), None, "server-key.pem"),
        (certificate.clone(), certificate.clone(), None, "server-cert.pem"),
        (certificate.clone(), key.clone(), Some(key.clone()), "server-key.pem"),
    ] {
        let error = load(certificate, key, authorities).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(named), "{error}");
    }
}
