//! The signatures, while the inside is being built.
#![allow(clippy::unimplemented, clippy::todo, unused_variables, missing_docs, dead_code)]

use crate::unit::branch::*;
use crate::unit::checkpoint::*;
use crate::unit::pins::*;
use blocks::*;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub reserve: ByteLen,
    pub part_extents_max: usize,
    pub part_log_bytes_max: ByteLen,
    pub index_cache: ByteLen,
    pub merge_in_background: bool,
}
impl Default for StoreOptions {
    fn default() -> Self {
        todo!()
    }
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    pub machine: MachineId,
    pub name: String,
    pub definition: Vec<u8>,
    pub disks: Vec<DiskSpec>,
    pub image_format: ImageFormat,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    pub len: ByteLen,
    pub serial: String,
    pub device: String,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    Raw,
    Vhd,
}
impl FromStr for ImageFormat {
    type Err = Error;
    fn from_str(text: &str) -> Result<ImageFormat> {
        todo!()
    }
}
impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}
#[derive(Debug)]
pub struct Store;
#[derive(Debug)]
pub struct Unit;
#[derive(Debug)]
pub struct BranchDisk;
#[derive(Debug)]
pub struct View;
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    Data(&'a [u8]),
    Zero,
    Discard,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsolidateReport {
    pub written: ByteLen,
    pub zeroed: ByteLen,
    pub deltas: u64,
    pub freed: ByteLen,
}
impl Store {
    pub fn open(storage: Arc<dyn Storage>, options: StoreOptions) -> Result<Store> {
        todo!()
    }
    pub fn id(&self) -> StoreId {
        todo!()
    }
    pub fn findings(&self) -> Vec<String> {
        todo!()
    }
    pub fn damaged_units(&self) -> Vec<(MachineId, String)> {
        todo!()
    }
    pub fn create_unit(&self, spec: UnitSpec) -> Result<Arc<Unit>> {
        todo!()
    }
    pub fn units(&self) -> Vec<Arc<Unit>> {
        todo!()
    }
    pub fn unit(&self, machine: MachineId) -> Option<Arc<Unit>> {
        todo!()
    }
    pub fn unit_by_name(&self, name: &str) -> Option<Arc<Unit>> {
        todo!()
    }
    pub fn remove_unit(&self, machine: MachineId) -> Result<()> {
        todo!()
    }
    pub fn free_space(&self) -> Result<Option<ByteLen>> {
        todo!()
    }
}
impl Unit {
    pub fn machine(&self) -> MachineId {
        todo!()
    }
    pub fn name(&self) -> String {
        todo!()
    }
    pub fn definition(&self) -> Vec<u8> {
        todo!()
    }
    pub fn set_definition(&self, definition: Vec<u8>) -> Result<()> {
        todo!()
    }
    pub fn disks(&self) -> Vec<DiskSpec> {
        todo!()
    }
    pub fn image_format(&self) -> ImageFormat {
        todo!()
    }
    pub fn image_name(&self, disk: DiskIndex) -> Result<String> {
        todo!()
    }
    pub fn generation(&self) -> Generation {
        todo!()
    }
    pub fn promote(&self) -> Result<Durable<Generation>> {
        todo!()
    }
    pub fn note(&self, key: &str) -> Option<Vec<u8>> {
        todo!()
    }
    pub fn notes(&self) -> Vec<String> {
        todo!()
    }
    pub fn set_note(&self, key: &str, value: Option<Vec<u8>>) -> Result<()> {
        todo!()
    }
    pub fn main_branch(&self) -> BranchId {
        todo!()
    }
    pub fn branches(&self) -> Vec<BranchInfo> {
        todo!()
    }
    pub fn disk(&self, branch: BranchId, disk: DiskIndex) -> Result<Arc<BranchDisk>> {
        todo!()
    }
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        todo!()
    }
    pub fn checkpoint(&self, id: CheckpointId) -> Option<Checkpoint> {
        todo!()
    }
    pub fn seal(&self, branch: BranchId, spec: CheckpointSpec) -> Result<Durable<CheckpointId>> {
        todo!()
    }
    pub fn gaps(&self) -> Vec<Gap> {
        todo!()
    }
    pub fn record_gap(&self, gap: Gap) -> Result<()> {
        todo!()
    }
    pub fn view(&self, at: CheckpointId, disk: DiskIndex) -> Result<View> {
        todo!()
    }
    pub fn fork(&self, at: CheckpointId, kind: BranchKind) -> Result<BranchId> {
        todo!()
    }
    pub fn drop_branch(&self, branch: BranchId) -> Result<()> {
        todo!()
    }
    pub fn adopt(&self, branch: BranchId) -> Result<BranchId> {
        todo!()
    }
    pub fn difference(&self, a: Point, b: Point, disk: DiskIndex) -> Result<ExtentSet> {
        todo!()
    }
    pub fn horizon(&self) -> Option<CheckpointId> {
        todo!()
    }
    pub fn replaying(&self) -> Option<CheckpointId> {
        todo!()
    }
    pub fn consolidate(
        &self,
        up_to: CheckpointId,
        progress: &dyn Fn(ByteLen, ByteLen) -> bool,
    ) -> Result<ConsolidateReport> {
        todo!()
    }
    pub fn pins(&self) -> Vec<Pin> {
        todo!()
    }
}
impl BranchDisk {
    pub fn append(&self, seq: Seq, extent: Extent, payload: Payload<'_>) -> Result<()> {
        todo!()
    }
    pub fn sync(&self) -> Result<Durable<Seq>> {
        todo!()
    }
    pub fn last_seq(&self) -> Seq {
        todo!()
    }
    pub fn changed_since_fork(&self) -> Result<ExtentSet> {
        todo!()
    }
    pub fn seal_part(&self) -> Result<DeltaId> {
        todo!()
    }
    pub fn changed_since(&self, after: DeltaId) -> Result<ExtentSet> {
        todo!()
    }
}
macro_rules! volume {
    ($name:ident) => {
        impl Volume for $name {
            fn len(&self) -> ByteLen {
                todo!()
            }
            fn is_read_only(&self) -> bool {
                todo!()
            }
            fn read_at(&self, offset: ByteOffset, buffer: &mut [u8], class: RequestClass) -> Result<()> {
                todo!()
            }
            fn write_at(
                &self,
                offset: ByteOffset,
                data: &[u8],
                fua: bool,
                class: RequestClass,
            ) -> Result<()> {
                todo!()
            }
            fn write_zeroes(&self, extent: Extent, keep: bool, fua: bool, class: RequestClass) -> Result<()> {
                todo!()
            }
            fn discard(&self, extent: Extent, fua: bool, class: RequestClass) -> Result<()> {
                todo!()
            }
            fn flush(&self) -> Result<()> {
                todo!()
            }
            fn status(&self, extent: Extent) -> Result<Vec<ExtentStatus>> {
                todo!()
            }
        }
    };
}
volume!(BranchDisk);
volume!(View);
