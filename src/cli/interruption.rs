//! Signals that end a command which has something to tidy up first.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Failure;

/// How long the command may take to notice. Whatever it waits for, the end comes then.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a signal wants the command to end.
pub struct Interruption(Arc<AtomicI32>);

impl Interruption {
    /// From now on SIGINT and SIGTERM end the process with a delay, or when the command sees to it.
    pub fn watch() -> std::io::Result<Interruption> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let came = Arc::new(AtomicI32::new(0));
        let seen = came.clone();
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                seen.store(signal, Ordering::Relaxed);
                thread::sleep(GRACE);
                process::exit(128 + signal);
            }
        });
        Ok(Interruption(came))
    }

    /// # Errors
    /// [`Failure::Interrupted`] when one does.
    pub fn check(&self) -> Result<(), Failure> {
        match u8::try_from(self.0.load(Ordering::Relaxed)) {
            Ok(0) | Err(_) => Ok(()),
            Ok(signal) => Err(Failure::Interrupted(signal)),
        }
    }
}
