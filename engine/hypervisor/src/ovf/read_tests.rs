use super::*;

const HEAD: &str = r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">"#;
const SYSTEM: &str = r#"<VirtualSystem ovf:id="m"><Info/></VirtualSystem></Envelope>"#;

fn with(file: &str, disk: &str) -> Result<Descriptor> {
    let text = format!(
        "{HEAD}<References><File ovf:id=\"f\" {file}/></References><DiskSection><Info/><Disk ovf:diskId=\"d\" {disk}/></DiskSection>{SYSTEM}"
    );
    Descriptor::parse(text.as_bytes())
}

const FILE: &str = r#"ovf:href="a.vmdk""#;

fn refusal(file: &str, disk: &str) -> (ErrorKind, String) {
    let error = with(file, disk).expect_err(&format!("{file} {disk}"));
    (error.kind(), error.to_string())
}

#[test]
fn disks_are_understood_however_they_are_said() {
    let read =
        with(FILE, r#"ovf:fileRef="f" ovf:capacity="3" ovf:capacityAllocationUnits="byte * 2^30""#).unwrap();
    assert_eq!((read.name.as_str(), read.disks[0].capacity), ("m", Some(ByteLen::new(3 << 30))));
    assert_eq!(read.disks[0].format, Err(String::new()));
    let read = with(r#"href="a%20b/c.vmdk" size="7""#, r#"fileRef="f" capacity="512""#).unwrap();
    assert_eq!(read.files, ["a b/c.vmdk"]);
    assert_eq!((read.disks[0].file_len, read.disks[0].capacity), (Some(7), Some(ByteLen::new(512))));
    assert_eq!(with(FILE, "").unwrap().disks[0].file, None);
}

#[test]
fn references_that_lead_out_are_refused() {
    for href in [
        "../a",
        "/etc/shadow",
        "a/../../b",
        "a//b",
        "./a",
        "%2e%2e/a",
        "..\\a",
        "http://example.org/a",
        "file:///a",
        "",
    ] {
        let (kind, message) = refusal(&format!("ovf:href=\"{href}\""), "");
        assert_eq!(kind, ErrorKind::Unsupported, "{href}: {message}");
    }
    assert_eq!(refusal(r#"ovf:href="a%00b""#, "").0, ErrorKind::Corrupt);
}

#[test]
fn what_is_not_read_is_named() {
    for (file, disk, word) in [
        (r#"ovf:href="a" ovf:compression="gzip""#, "", "gzip"),
        (r#"ovf:href="a" ovf:chunkSize="100""#, "", "pieces"),
        (FILE, r#"ovf:parentRef="x""#, "stands on"),
    ] {
        let (kind, message) = refusal(file, disk);
        assert!(kind == ErrorKind::Unsupported && message.contains(word), "{message}");
    }
    let collection = format!("{HEAD}<VirtualSystemCollection/></Envelope>");
    assert_eq!(Descriptor::parse(collection.as_bytes()).unwrap_err().kind(), ErrorKind::Unsupported);
    let old = "<Envelope xmlns=\"http://www.vmware.com/schema/ovf/1/envelope\"/>";
    assert!(Descriptor::parse(old.as_bytes()).unwrap_err().to_string().contains("0.9"));
}

#[test]
fn capacities_that_no_disk_has_are_refused() {
    for disk in [
        r#"ovf:capacity="-1""#,
        r#"ovf:capacity="${disk.size}""#,
        r#"ovf:capacity="18446744073709551616""#,
        r#"ovf:capacity="17179869184" ovf:capacityAllocationUnits="byte * 2^30""#,
        r#"ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^99999999999""#,
        r#"ovf:capacity="1" ovf:capacityAllocationUnits="furlongs""#,
        r#"ovf:fileRef="g""#,
    ] {
        let (kind, message) = refusal(FILE, disk);
        assert!(kind == ErrorKind::Corrupt && message.contains("'d'"), "{message}");
    }
    assert_eq!(refusal(r#"ovf:href="a" ovf:size="many""#, "").0, ErrorKind::Corrupt);
}

#[test]
fn documents_that_would_grow_are_refused() {
    let bomb = format!(
        "<!DOCTYPE x [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]>{HEAD}<References/><Info>&b;</Info>{SYSTEM}"
    );
    assert!(Descriptor::parse(bomb.as_bytes()).unwrap_err().to_string().contains("DTD"));
    let external = format!("<!DOCTYPE x SYSTEM \"file:///etc/passwd\">{HEAD}{SYSTEM}");
    assert!(Descriptor::parse(external.as_bytes()).is_err());
    for (inside, word) in [
        ("<a>".repeat(200_000), "limit"),
        ("<a/>".repeat(200_000), "limit"),
        (
            format!(
                "<a {}/>",
                (0..100).map(|number| format!("b{number}=\"\"")).collect::<Vec<_>>().join(" ")
            ),
            "attributes",
        ),
        ((0..300).map(|number| format!("<a xmlns:b{number}=\"c\">")).collect(), "namespaces"),
    ] {
        let error = Descriptor::parse(format!("{HEAD}{inside}{SYSTEM}").as_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let long = vec![b' '; usize::try_from(DESCRIPTOR_BYTES_MAX).unwrap() + 1];
    assert!(Descriptor::parse(&long).unwrap_err().to_string().contains("at most"));
}

#[test]
fn nothing_is_there_twice() {
    let text =
        format!("{HEAD}<DiskSection><Disk ovf:diskId=\"d\"/><Disk ovf:diskId=\"d\"/></DiskSection>{SYSTEM}");
    assert!(Descriptor::parse(text.as_bytes()).unwrap_err().to_string().contains("twice"));
    let file = "<File ovf:id=\"f\" ovf:href=\"a\"/>";
    let text = format!("{HEAD}<References>{file}{file}</References>{SYSTEM}");
    assert!(Descriptor::parse(text.as_bytes()).unwrap_err().to_string().contains("twice"));
    let text = format!("{HEAD}<VirtualSystem ovf:id=\"a\"/>{SYSTEM}");
    assert!(Descriptor::parse(text.as_bytes()).unwrap_err().to_string().contains("more than one"));
}
