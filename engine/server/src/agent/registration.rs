//! Who may replicate, from where on, or why not. Pure: a hello and what the store knows go in, an answer comes out.

use super::homecoming::Homecoming;
use blocks::{ByteLen, Error, Generation, MachineId, Seq, SessionId, StoreId};
use store::ImageFormat;
use wire::{
    Continuity, DiskHello, DiskWelcome, Hello, Refusal, RefusalKind, Role, StartFrom, check_machine_name,
};

/// More disks than any machine has; a bound for what a hello can make the server allocate.
pub(crate) const DISKS_MAX: usize = 256;

/// What the store knows that a hello could mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Knowledge {
    /// This store.
    pub store: StoreId,
    /// What new units' images are made of; depends on the disks where nothing is said.
    pub image_format: Option<ImageFormat>,
    /// The unit of the identity that the hello carries.
    pub by_machine: Option<Known>,
    /// The unit of the name that the hello carries.
    pub by_name: Option<Known>,
}

/// A machine that has a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its identity.
    pub machine: MachineId,
    /// The name that it was registered with.
    pub name: String,
    /// Its generation.
    pub generation: Generation,
    /// The highest generation under which something of its history was made: what a session brought home, in the end.
    pub history: Generation,
    /// The session that is in charge of it.
    pub promoted: Option<SessionId>,
    /// Which disks the newest history came home to, where it did.
    pub home: Option<Homecoming>,
    /// Its disks.
    pub disks: Vec<KnownDisk>,
}

/// A disk that has a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownDisk {
    /// Its size.
    pub len: ByteLen,
    /// Its size at the newest checkpoint: what lies behind that was never received as a whole.
    pub sealed_len: ByteLen,
    /// As registered; may be empty.
    pub serial: String,
    /// As registered, for messages.
    pub device: String,
    /// Everything of the main branch up to here is durable.
    pub durable: Seq,
    /// Whether nothing of it was ever received.
    pub empty: bool,
}

/// What to do about a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Make a unit with this identity (a new one for `None`), then decide again.
    Register(Option<MachineId>),
    /// Give the disks of this machine these lengths, then decide again.
    Grow {
        /// Which.
        machine: MachineId,
        /// One for each disk.
        lens: Vec<ByteLen>,
    },
    /// Welcome it as this machine.
    Welcome {
        /// Which.
        machine: MachineId,
        /// Its generation.
        generation: Generation,
        /// What it is to do.
        role: Role,
        /// One for each disk of the hello.
        disks: Vec<DiskWelcome>,
    },
    /// Send it away.
    Refuse(Refusal),
}

/// Decides about a hello whose sender may speak for the machine that it names.
pub(crate) fn decide(hello: &Hello, knowledge: &Knowledge) -> Decision {
    match try_decide(hello, knowledge) {
        Ok(decision) => decision,
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn try_decide(hello: &Hello, knowledge: &Knowledge) -> Result<Decision, Refusal> {
    check_machine_name(&hello.name).map_err(|error| refusal(RefusalKind::Identity, error.to_string()))?;
    if let Some(session) = hello.session {
        let reason = format!(
            "'{}' runs inside session {session}: a stand-in's guest is not a second source",
            hello.name
        );
        return Err(refusal(RefusalKind::Busy, reason));
    }
    let Some(known) = identify(hello, knowledge)? else {
        check_new_disks(hello, knowledge.image_format)?;
        return Ok(Decision::Register(hello.machine));
    };
    let role = role(hello, known, knowledge.store);
    let disks = match role {
        Role::Source => {
            check_disks(&hello.disks, &known.disks)?;
            let lens: Vec<ByteLen> = hello.disks.iter().map(|disk| disk.len).collect();
            if lens.iter().zip(&known.disks).any(|(len, known)| *len > known.len) {
                return Ok(Decision::Grow { machine: known.machine, lens });
            }
            let pairs = hello.disks.iter().zip(&known.disks);
            pairs.map(|(disk, known)| welcome_disk(&disk.continuity, known, knowledge.store)).collect()
        }
        Role::Standby { .. } => standby_disks(&hello.disks, &known.disks),
    };
    Ok(Decision::Welcome { machine: known.machine, generation: known.generation, role, disks })
}

/// The unit that the hello is about; `None` for a machine not seen before.
fn identify<'a>(hello: &Hello, knowledge: &'a Knowledge) -> Result<Option<&'a Known>, Refusal> {
    let taken = |known: &Known| {
        let reason = format!(
            "the name '{}' belongs to machine {} here; give this one another name, or remove that machine first",
            known.name, known.machine
        );
        refusal(RefusalKind::Taken, reason)
    };
    match (hello.machine, &knowledge.by_machine, &knowledge.by_name) {
        (Some(_), Some(known), Some(named)) if named.machine != known.machine => Err(taken(named)),
        (Some(_), Some(known), _) => Ok(Some(known)),
        (Some(_), None, Some(named)) => Err(taken(named)),
        // An agent that has lost its memory: it is the machine of that name only if its disks say so, or if it can do no
        // harm because a session is in charge and it comes as the target of a failback.
        (None, _, Some(named)) => {
            let harmless = named.promoted.is_some() || named.history > Generation::FIRST;
            if harmless || are_its_disks(&hello.disks, &named.disks) {
                Ok(Some(named))
            } else {
                Err(taken(named))
            }
        }
        (_, _, None) => Ok(None),
    }
}

/// Who is fenced: a machine whose stand-in is in charge, or one that has not learnt of a promotion that became history.
/// Of a promotion whose session was given up nothing is left, so the machine goes on and learns the number.
fn role(hello: &Hello, known: &Known, store: StoreId) -> Role {
    let standby = |reason: String| Role::Standby { reason };
    if let Some(session) = known.promoted {
        return standby(format!(
            "session {session} is in charge of '{}'; bring it home with failback",
            known.name
        ));
    }
    let came_home = known.home.as_ref().is_some_and(|home| home.is_of(known.history, &hello.disks));
    if hello.generation < known.history && known.history > Generation::FIRST && !came_home {
        return standby(format!(
            "the history of '{}' goes on from generation {} while this machine has {}: what it holds is not the newest; \
             bring it up to date with failback (`understudy machine admit {}` where its disks were, and cannot be told \
             from others by a serial number)",
            known.name, known.history, hello.generation, known.name
        ));
    }
    if hello.generation > known.generation && !comes_from_another_store(hello, store) {
        return standby(format!(
            "this machine has generation {} of '{}' and the store only {}: the store is older than what it knows",
            hello.generation, known.name, known.generation
        ));
    }
    Role::Source
}

fn comes_from_another_store(hello: &Hello, ours: StoreId) -> bool {
    hello.disks.iter().all(|disk| match disk.continuity {
        Continuity::Tracked { store, .. } => store != ours,
        Continuity::Unknown { .. } => false,
    })
}

/// Where replication of a disk goes on.
fn welcome_disk(continuity: &Continuity, known: &KnownDisk, ours: StoreId) -> DiskWelcome {
    let start = match continuity {
        _ if known.empty => StartFrom::Everything,
        // Whatever the agent knows is of the disk as it was before it grew, or came home to a longer one.
        _ if known.len > known.sealed_len => StartFrom::Scan,
        // More than was ever sent from there: the disk was set back together with what its agent remembers.
        Continuity::Tracked { store, acked, sent }
            if *store == ours && (*acked..=*sent).contains(&known.durable) =>
        {
            StartFrom::Marked
        }
        Continuity::Tracked { .. } | Continuity::Unknown { .. } => StartFrom::Scan,
    };
    DiskWelcome { durable: known.durable, start }
}

fn standby_disks(disks: &[DiskHello], known: &[KnownDisk]) -> Vec<DiskWelcome> {
    let durable = |index: usize| known.get(index).map_or(Seq(0), |known| known.durable);
    (0..disks.len()).map(|index| DiskWelcome { durable: durable(index), start: StartFrom::Scan }).collect()
}

/// What a new machine's images are made of.
pub(crate) fn image_format(chosen: Option<ImageFormat>, disks: &[DiskHello]) -> ImageFormat {
    chosen.unwrap_or_else(|| ImageFormat::for_disks(disks.iter().map(|disk| disk.len)))
}

fn check_new_disks(hello: &Hello, chosen: Option<ImageFormat>) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(refusal(RefusalKind::Disks, reason));
    if hello.disks.is_empty() || hello.disks.len() > DISKS_MAX {
        return refuse(format!("{} disks; between 1 and {DISKS_MAX} can be protected", hello.disks.len()));
    }
    let format = image_format(chosen, &hello.disks);
    for disk in &hello.disks {
        if let Err(error) = format.check_len(disk.len) {
            return refuse(format!("{}: {error}", disk.device));
        }
    }
    Ok(())
}

/// Whether an agent without an identity has the disks that were registered: one that has grown must be known by its serial
/// number.
fn are_its_disks(disks: &[DiskHello], known: &[KnownDisk]) -> bool {
    let same = |(disk, known): (&DiskHello, &KnownDisk)| {
        disk.len == known.len || (!disk.serial.is_empty() && disk.serial == known.serial)
    };
    check_disks(disks, known).is_ok() && disks.iter().zip(known).all(same)
}

/// An image cannot hold a disk that has grown.
pub(crate) fn cannot_grow(error: &Error) -> Refusal {
    refusal(
        RefusalKind::Disks,
        format!(
            "{error}; make the disk as long as it was, or register it under another name on a server that gives new machines \
             an image of another format (--image-format)"
        ),
    )
}

/// Whether these are the disks that were registered; they may have grown.
fn check_disks(disks: &[DiskHello], known: &[KnownDisk]) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(refusal(RefusalKind::Disks, reason));
    if let Some(missing) = known.get(disks.len()) {
        return refuse(format!("disk {} ({}) has vanished", disks.len(), missing.device));
    }
    if let Some(added) = disks.get(known.len()) {
        return refuse(format!("{} was not registered; disks cannot be added yet", added.device));
    }
    for (index, (disk, known)) in disks.iter().zip(known).enumerate() {
        let (device, len) = (&disk.device, disk.len);
        if len < known.len {
            return refuse(format!(
                "disk {index} ({device}) has shrunk from {} to {len} bytes, and a shorter disk cannot go on where a longer \
                 one was: give it its {} bytes back, or register it under another name",
                known.len, known.len
            ));
        }
        if disk.serial != known.serial && !disk.serial.is_empty() && !known.serial.is_empty() {
            return refuse(format!(
                "disk {index} ({device}) is '{}', but '{}' was registered there",
                disk.serial, known.serial
            ));
        }
    }
    Ok(())
}

pub(crate) fn refusal(kind: RefusalKind, reason: impl Into<String>) -> Refusal {
    Refusal { kind, reason: reason.into() }
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
