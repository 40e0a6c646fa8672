//! The allocator of an agent's process.

/// Has all threads share one heap. To be called before the process has a second thread.
///
/// Data is read by several threads, and glibc gives each thread a heap that keeps what was freed in it: the agent's
/// memory would grow to what each of them once held, several times the bound that the queues have. They take large
/// pieces and seldom, so sharing costs nothing that shows.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
