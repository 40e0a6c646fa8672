//! What is changed of a machine.

use clap::Args;

/// What is changed; the rest stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct MachineChanges {
    /// A ladder, a duration, none, or default for the server's.
    #[arg(long, value_name = "LADDER")]
    pub keep: Option<String>,
    /// A size such as 500GiB, or none.
    #[arg(long, value_name = "SIZE|none", value_parser = quota)]
    pub quota: Option<u64>,
    /// What is done when it fails: tell people, or serve its newest checkpoint and take charge, or
    /// start the stand-in on that too.
    #[arg(long, value_name = "WHAT", value_parser = ["notify", "recover", "boot"])]
    pub on_failure: Option<String>,
    /// Who is asked whether it is dead: tcp:HOST:PORT, command:PROGRAM (absolute), or none.
    #[arg(long, value_name = "PROBE")]
    pub probe: Option<String>,
    /// How often its stand-in is started in a drill, or never.
    #[arg(long, value_name = "DURATION|never")]
    pub drill_every: Option<String>,
    /// By what these drills are measured: tcp:PORT, agent or console:TEXT.
    #[arg(long, value_name = "PROBE")]
    pub drill_probe: Option<String>,
    /// Memory of the stand-in in these drills [default: the machine's, or what the host has].
    #[arg(long, value_name = "SIZE", requires = "drill_probe")]
    pub drill_memory: Option<bytesize::ByteSize>,
}

/// Bytes; 0 for none.
fn quota(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        size => match size.parse::<bytesize::ByteSize>()?.as_u64() {
            0 => Err("a quota of 0 bytes keeps nothing; say none for no quota".to_owned()),
            bytes => Ok(bytes),
        },
    }
}
