//! What the product finds in the place of the host's folders: a storage for targets of migrations.

use blocks::Storage;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    static TARGETS: RefCell<Option<Arc<dyn Storage>>> = const { RefCell::new(None) };
}

/// Where files of targets lie, whatever their folder is called.
pub(crate) fn targets() -> Option<Arc<dyn Storage>> {
    TARGETS.with_borrow(Clone::clone)
}

pub(super) fn set_targets(storage: Option<Arc<dyn Storage>>) {
    TARGETS.set(storage);
}
