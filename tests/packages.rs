//! OVAs and OVF packages that others made, or that nobody should make, as `understudy image` takes them.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder with a disk in it, and in `package` what is made of it.
struct Bench(tempfile::TempDir);

/// As VMware writes it, shorter.
const DESCRIPTOR: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:href="one.vmdk" ovf:id="file1"/>
    <File ovf:href="two.qcow2" ovf:id="file2"/>
  </References>
  <DiskSection>
    <Info>Disks</Info>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="d1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
    <Disk ovf:capacity="16777216" ovf:diskId="d2" ovf:fileRef="file2" ovf:format="http://www.gnome.org/~markmc/qcow-image-format.html"/>
  </DiskSection>
  <VirtualSystem ovf:id="vm">
    <Info>A machine</Info>
    <Name>mail &amp; more</Name>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>512</rasd:VirtualQuantity></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#;

impl Bench {
    /// With the descriptor and its disks, and without a manifest.
    fn new() -> Bench {
        let bench = Bench(tempfile::tempdir().unwrap());
        bench.sh("mkdir package && qemu-img create -q -f raw disk.raw 16M
            qemu-io -f raw -c 'write -P 5 1M 3M' -c 'write -P 7 12M 64k' disk.raw
            qemu-img convert -f raw -O vmdk -o subformat=streamOptimized disk.raw package/one.vmdk
            qemu-img convert -f raw -O qcow2 disk.raw package/two.qcow2");
        bench.describe(DESCRIPTOR);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn describe(&self, descriptor: &str) {
        std::fs::write(self.path("package/vm.ovf"), descriptor).unwrap();
    }

    fn sh(&self, script: &str) -> String {
        let output = Command::new("bash").args(["-ec", script]).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn us(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
        command.args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn well(&self, arguments: &[&str]) -> Value {
        let output = self.us(&[&["--json"], arguments].concat());
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What is said where it must fail.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.us(arguments);
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {said}");
        said
    }
}

#[test]
fn packages_of_every_kind_of_tar_and_digest_are_read() {
    let bench = Bench::new();
    for (format, program) in [("ustar", "sha1sum"), ("gnu", "sha256sum"), ("pax", "sha512sum")] {
        bench.sh(&format!(
            "cd package && rm -f vm.mf && {program} --tag vm.ovf one.vmdk two.qcow2 > vm.mf
            tar --format={format} -cf ../{format}.ova vm.ovf one.vmdk two.qcow2 vm.mf"
        ));
        let archive = format!("{format}.ova");
        for place in [archive.as_str(), "package", "package/vm.ovf"] {
            let info = bench.well(&["image", "info", place]);
            assert_eq!((info["machine"].as_str(), info["cpus"].as_u64()), (Some("mail & more"), Some(2)));
            assert_eq!(
                (info["memory_bytes"].as_u64(), info["firmware"].as_str()),
                (Some(512 << 20), Some("uefi"))
            );
            assert_eq!(info["disks"][0]["bytes"], 16 << 20, "{info}");
            let checked = bench.well(&["image", "check", place]);
            assert_eq!(
                (checked["clean"].as_bool(), checked["manifest_files"].as_u64()),
                (Some(true), Some(3))
            );
        }
        for disk in ["0", "1"] {
            let target = format!("{format}-{disk}.raw");
            bench.well(&["image", "convert", &archive, &target, "--disk", disk, "--to", "raw"]);
            bench.sh(&format!("cmp disk.raw {target}"));
        }
    }
    assert!(bench.fails(&["image", "convert", "ustar.ova", "no", "--to", "raw"]).contains("--disk"));
    assert!(
        bench
            .fails(&["image", "convert", "ustar.ova", "no", "--disk", "2", "--to", "raw"])
            .contains("no disk 2")
    );
    assert!(bench.fails(&["image", "info", "disk.raw", "--disk", "0"]).contains("one disk"));
    assert!(bench.fails(&["image", "check", "ustar.ova", "--repair"]).contains("repaired"));
    assert!(!bench.path("no").exists());
}

#[test]
fn what_is_wrong_with_a_package_is_named() {
    let bench = Bench::new();
    bench.sh("cd package && sha256sum --tag vm.ovf one.vmdk two.qcow2 > vm.mf && tar -cf ../a.ova vm.ovf vm.mf one.vmdk two.qcow2
        printf rotten | dd of=two.qcow2 bs=1 seek=70000 conv=notrunc status=none");
    let said = bench.fails(&["image", "check", "package"]);
    assert!(said.contains("'two.qcow2'") && !said.contains("'one.vmdk'"), "{said}");
    bench.sh("rm package/two.qcow2");
    assert!(bench.fails(&["image", "check", "package"]).contains("two.qcow2"));
    bench.describe(&DESCRIPTOR.replace("capacity=\"16\"", "capacity=\"17\""));
    assert!(bench.fails(&["image", "check", "package"]).contains("disk 0: the disk has 16777216 bytes"));
    // Truncated, and with a header that says more than there is.
    bench.sh("head -c 100000 a.ova > cut.ova");
    assert!(bench.fails(&["image", "info", "cut.ova"]).contains("which the archive does not have"));
    bench.sh("cd package && tar -cf ../twice.ova vm.ovf && tar -rf ../twice.ova vm.ovf");
    assert!(bench.fails(&["image", "info", "twice.ova"]).contains("twice"));
    bench.sh("cp package/vm.ovf package/other.ovf");
    assert!(bench.fails(&["image", "info", "package"]).contains("other.ovf"));
}

#[test]
fn packages_that_lead_out_are_refused() {
    let bench = Bench::new();
    bench.sh("cp disk.raw secret.vmdk; ln -s ../secret.vmdk package/link.vmdk");
    for (file, word) in
        [("../secret.vmdk", "leads out"), ("/etc/shadow", "leads out"), ("file:///etc/shadow", "elsewhere")]
    {
        bench.describe(&DESCRIPTOR.replace("one.vmdk", file));
        assert!(bench.fails(&["image", "info", "package"]).contains(word));
    }
    // A link is no file of the package, whatever it leads to.
    bench.describe(&DESCRIPTOR.replace("one.vmdk", "link.vmdk"));
    let said = bench.fails(&["image", "convert", "package/vm.ovf", "no", "--disk", "0", "--to", "raw"]);
    assert!(said.contains("link.vmdk"), "{said}");
    bench.describe(DESCRIPTOR);
    bench.sh("cd package && ln -sf /etc/passwd one.vmdk && tar -cf ../link.ova vm.ovf one.vmdk two.qcow2");
    assert!(bench.fails(&["image", "info", "link.ova"]).contains("no plain file"));
    // A disk that wants another file beside it stays alone.
    bench.sh(
        "cd package && rm one.vmdk && qemu-img create -q -f vmdk -o subformat=monolithicFlat one.vmdk 16M",
    );
    let said = bench.fails(&["image", "convert", "package", "no", "--disk", "0", "--to", "raw"]);
    assert!(said.contains("one-flat.vmdk"), "{said}");
    assert!(!bench.path("no").exists());
}

#[test]
fn formats_that_are_not_known_and_compressed_files_are_named() {
    let bench = Bench::new();
    let other = "http://example.org/unknown";
    bench.describe(&DESCRIPTOR.replace("http://www.gnome.org/~markmc/qcow-image-format.html", other));
    let said = bench.fails(&["image", "convert", "package", "no", "--disk", "1", "--to", "raw"]);
    assert!(said.contains(other) && said.contains("--format"), "{said}");
    bench.well(&[
        "image", "convert", "package", "said.raw", "--disk", "1", "--format", "qcow2", "--to", "raw",
    ]);
    bench.sh("cmp disk.raw said.raw");
    bench.describe(&DESCRIPTOR.replace("ovf:id=\"file1\"", "ovf:id=\"file1\" ovf:compression=\"gzip\""));
    assert!(bench.fails(&["image", "info", "package"]).contains("gzip"));
    bench.describe(&DESCRIPTOR.replace("<Envelope", "<!DOCTYPE a [<!ENTITY b \"c\">]><Envelope"));
    assert!(bench.fails(&["image", "info", "package"]).contains("DTD"));
}
