//! Imports that a file of weights has no use for. Nothing is ever imported, so
//! this list guards nothing; it is what lets a refusal call an attack by its name.

use super::objects;
use super::refusal::{Cause, Refusal, shown};
use crate::pickle::{Import, Object, ObjectId, Pickle};

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
    "test.support",
    "timeit",
    "torch.hub",
    "torch.utils._config_module",
    "torch.utils.bottleneck",
    "torch.utils.collect_env",
    "trace",
    "urllib",
    "urllib2",
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

/// Single names that run or reach other code, in modules that are harmless
/// otherwise.
const NAMES: &[&str] = &[
    "_io.FileIO",
    "_io.open",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "dill.loads",
    "io.FileIO",
    "io.open",
    "io.open_code",
    "joblib.load",
    "numpy.load",
    "pandas.read_pickle",
    "torch.jit.load",
    "torch.load",
    "torch.serialization.load",
    "types.CodeType",
    "types.FunctionType",
    "uuid._get_command_stdout",
];

/// The first import that makes a pickle an attack. What Paddle saves imports
/// `eval`, for one harmless purpose.
pub fn find_in(pickle: &Pickle) -> Option<Refusal> {
    let is_eval = |import: &&Import| &*import.name == "eval" && is_dangerous(import);
    let evals = pickle.imports().iter().any(|import| is_eval(&import));
    let harmless = evals && only_evaluates_arrays(pickle);
    let imports = pickle.imports().iter();
    find(imports.filter(|import| !(harmless && is_eval(import))))
}

/// Whether all that happens to `eval` in the pickle, anywhere, are calls that
/// return an array.
fn only_evaluates_arrays(pickle: &Pickle) -> bool {
    let is_eval = |id: ObjectId| {
        let global = pickle.global(id);
        matches!(global, Some((_, "eval")))
    };
    let mut held = Vec::new();
    pickle.ids().all(|id| {
        let object = pickle.get(id);
        held.clear();
        object.push_children(&mut held);
        let mentions = held.iter().filter(|held| is_eval(**held)).count();
        mentions == 0
            || mentions == 1
                && matches!(object, Object::Call(call) if objects::evaluated(pickle, call).is_some())
    })
}

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
                    shown(&import.module),
                    shown(&import.name)
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
    let mut way: Vec<&str> = import.name.split('.').collect();
    let last = way.pop().unwrap_or_default();
    // `pathlib` and `os.system`: an attribute on the way that is such a module.
    let reached = way.iter().any(|step| MODULES.contains(step));
    let first = import.name.split('.').next().unwrap_or_default();
    let builtins = ["builtins", "__builtin__"];
    let builtin = builtins.contains(&&*import.module) && BUILTINS.contains(&first)
        || way.last().is_some_and(|step| builtins.contains(step)) && BUILTINS.contains(&last);
    builtin || reached || MODULES.iter().any(inside) || NAMES.contains(&full.as_str())
}
