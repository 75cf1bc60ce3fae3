//! The `stfs` program.

fn main() -> std::process::ExitCode {
    stfs::cli::run()
}
