//! Named steps at which a test can have a program die.

/// In a debug build, ends the process at once, with no destructor run and nothing flushed, when
/// `UNDERSTUDY_CRASH_AT` names this step: `STEP`, or `STEP:N` for the Nth time that it is reached. In a release build
/// it is nothing at all.
///
/// Stands right after something has become durable and before it is relied on, which is where a crash hurts.
#[inline]
pub fn crash_point(step: &'static str) {
    #[cfg(debug_assertions)]
    armed::reach(step);
    #[cfg(not(debug_assertions))]
    let _ = step;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        step: String,
        left: AtomicU64,
    }

    fn armed() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let read = || {
            let wish = std::env::var("UNDERSTUDY_CRASH_AT").ok()?;
            let (step, times) = wish.split_once(':').unwrap_or((&wish, "1"));
            Some(Armed { step: step.to_owned(), left: AtomicU64::new(times.parse().ok()?) })
        };
        ARMED.get_or_init(read).as_ref()
    }

    pub fn reach(step: &str) {
        if let Some(armed) = armed().filter(|armed| armed.step == step)
            && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            eprintln!("dying at {step}, as UNDERSTUDY_CRASH_AT asks");
            std::process::abort();
        }
    }
}
