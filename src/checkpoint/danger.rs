//! Imports that a file of weights has no use for. Nothing is ever imported, so
//! this list guards nothing; it is what lets a refusal call an attack by its name.

use super::refusal::{Cause, Refusal};
use crate::pickle::Import;

/// Modules whose every name is meant to act on the machine; submodules included.
const MODULES: &[&str] = &[
    "_posixsubprocess",
    "aiohttp",
    "asyncio",
    "bdb",
    "cProfile",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "distutils",
    "doctest",
    "ensurepip",
    "ftplib",
    "http",
    "httplib",
    "idlelib",
    "imaplib",
    "importlib",
    "lib2to3",
    "marshal",
    "multiprocessing",
    "nt",
    "numpy.f2py",
    "numpy.testing",
    "os",
    "pathlib.os",
    "pdb",
    "pickle",
    "_pickle",
    "pip",
    "pkgutil",
    "popen2",
    "posix",
    "profile",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "telnetlib",
    "test",
    "timeit",
    "torch.hub",
    "torch.utils._config_module",
    "torch.utils.bottleneck",
    "torch.utils.collect_env",
    "trace",
    "urllib",
    "urllib2",
    "uuid",
    "venv",
    "webbrowser",
    "_osx_support",
    "_aix_support",
    "_pyrepl",
];

/// Builtins that run or reach other code.
const BUILTINS: &[&str] = &[
    "__import__",
    "apply",
    "breakpoint",
    "compile",
    "delattr",
    "eval",
    "exec",
    "execfile",
    "globals",
    "input",
    "locals",
    "open",
    "setattr",
    "vars",
];

/// The first import that makes a pickle an attack.
pub fn find<'a>(imports: impl IntoIterator<Item = &'a Import>) -> Option<Refusal> {
    imports
        .into_iter()
        .find(|import| is_dangerous(import))
        .map(|import| {
            Refusal::new(
                Cause::Dangerous,
                format!(
                    "its pickle imports `{}.{}`, which can run code when the file is loaded",
                    import.module.escape_default(),
                    import.name.escape_default()
                ),
            )
        })
}

fn is_dangerous(import: &Import) -> bool {
    let full = format!("{}.{}", import.module, import.name);
    let inside = |module: &&'static str| {
        full.strip_prefix(*module)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    let builtin = matches!(&*import.module, "builtins" | "__builtin__")
        && BUILTINS.contains(&import.name.split('.').next().unwrap_or_default());
    builtin
        || MODULES.iter().any(inside)
        || matches!(full.as_str(), "torch.load" | "torch.serialization.load")
}
