//! Where the log goes: the terminal, a file, or the system log.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use log::{Level, LevelFilter, Record};

/// A destination.
#[derive(Debug)]
pub enum Log {
    Stderr,
    File(File),
    /// syslog(3), facility daemon. Lost where no system log runs.
    System,
}

/// Opens a log file to append to, readable by its owner alone where it is new.
///
/// # Errors
/// As open(2).
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Starts logging what is at least as grave as `level`; `RUST_LOG` overrides it.
/// A second call has no effect.
pub fn start(log: Log, level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level)
        // It warns of every operation that a read-only mount leaves to the kernel.
        .filter_module(
            "fuser",
            if level < LevelFilter::Debug {
                LevelFilter::Error
            } else {
                level
            },
        )
        .parse_default_env();
    match log {
        Log::Stderr => {}
        Log::File(file) => {
            builder.target(env_logger::Target::Pipe(Box::new(file)));
        }
        Log::System => {
            // The record goes to syslog(3) whole; there is nothing left to write.
            builder
                .format(|_, record| {
                    to_system_log(record);
                    Ok(())
                })
                .target(env_logger::Target::Pipe(Box::new(io::sink())));
        }
    }
    // Fails only where a logger is set already.
    let _ = builder.try_init();
}

fn to_system_log(record: &Record<'_>) {
    let priority = match record.level() {
        Level::Error => libc::LOG_ERR,
        Level::Warn => libc::LOG_WARNING,
        Level::Info => libc::LOG_INFO,
        Level::Debug | Level::Trace => libc::LOG_DEBUG,
    };
    let message = record.args().to_string().replace('\0', "\\0");
    let Ok(message) = CString::new(message) else {
        return;
    };
    // SAFETY: the format takes one string, and both are NUL-terminated. The
    // program name stands in for the missing openlog(3).
    unsafe {
        libc::syslog(
            priority | libc::LOG_DAEMON,
            c"%s".as_ptr(),
            message.as_ptr(),
        );
    }
}
