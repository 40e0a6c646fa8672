//! The agent-server protocol: messages, their bytes, connections, and who may speak.
//!
//! [`AgentMessage`] and [`ServerMessage`] travel in frames (docs/formats/wire.md) over a [`Connection`]: TLS 1.3 with
//! certificates on both sides, or plain where nothing leaves the machine (docs/design/0005-identity.md). An agent
//! calls [`enroll()`] once and [`connect`] ever after; a server has a [`Listener`] and calls [`accept`].

mod accept;
mod address;
mod codec;
mod connect;
mod connection;
mod enroll;
mod fingerprint;
mod frame;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod inventory;
mod message;
mod name;
mod packing;
mod private_file;
mod tls;
mod token;

pub use accept::{Incoming, Listener, Peer, accept};
pub use address::Address;
pub use codec::{DISK_BYTES_MAX, DISKS_MAX, EXTENTS_MAX, HASHES_MAX, Message};
pub use connect::{connect, plain_allowed};
pub use connection::{AgentConnection, Connection, Receiver, Sender, ServerConnection};
pub use enroll::enroll;
pub use fingerprint::Fingerprint;
pub use frame::{
    FIELDS_BYTES_MAX, FRAME_BYTES_MAX, HEADER_BYTES, PAYLOAD_BYTES_MAX, VERSION, VERSION_MIN, decode_frame,
    encode_frame, encode_packed_frame,
};
pub use identity::AgentIdentity;
pub use inventory::{DiskInventory, FileSystem, Firmware, Inventory, Nic, Partition};
pub use message::*;
pub use name::{NAME_BYTES_MAX, check_machine_name};
pub use private_file::{remove_file, write_private_file};
pub use tls::{Acceptor, Directory, PeerIdentity, SERVER_NAME, ServerCredentials, refused_identity};
pub use token::{SECRET_BYTES, TOKEN_ID_BYTES, Token, TokenSecret};
