//! The progress of commands that read many bytes, where somebody sees it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bytes of `total`, rate and time left, over a line for a message; on a terminal, if
/// it is `wanted` there.
pub fn progress_bar(total: u64, wanted: bool) -> ProgressBar {
    let target = match wanted && std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let style = ProgressStyle::with_template(
        "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left\n{wide_msg}",
    );
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
