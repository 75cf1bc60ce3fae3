//! Imports that a file of weights has no use for. Nothing is ever imported, so
//! this list guards nothing; it is what lets a refusal call an attack by its name.

use std::collections::HashSet;

use super::objects;
use super::refusal::{Cause, Refusal, shown};
use crate::pickle::{Call, CallKind, Import, Object, ObjectId, Pickle};

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

/// The first import that makes a pickle an attack. What Paddle saves imports `eval`, for
/// one harmless purpose, and what dill saves `setattr`.
pub fn find_in(pickle: &Pickle) -> Option<Refusal> {
    let has = |name| {
        let mut imports = pickle.imports().iter();
        imports.any(|import| &*import.name == name && is_dangerous(import))
    };
    let mut harmless = Vec::new();
    if has("eval") && only_evaluates_arrays(pickle) {
        harmless.push("eval");
    }
    if has("setattr") && only_completes_classes(pickle) {
        harmless.push("setattr");
    }
    let imports = pickle.imports().iter();
    find(imports.filter(|import| !harmless.contains(&&*import.name)))
}

/// Whether all that happens to `eval` in the pickle, anywhere, are calls that
/// return an array.
fn only_evaluates_arrays(pickle: &Pickle) -> bool {
    let is_eval = |id| is_named(pickle, id, "eval");
    mentions(pickle, is_eval).all(|(object, mentions)| {
        mentions == 1
            && matches!(object, Object::Call(call) if objects::evaluated(pickle, call).is_some())
    })
}

/// Whether all that happens to `setattr` in the pickle is what dill fills the classes
/// and cells with that it makes: `setattr(class, name, value)`, or the same by way of
/// `getattr(_dill, "_setattr", setattr)`.
fn only_completes_classes(pickle: &Pickle) -> bool {
    let reduced = |id: ObjectId| {
        let call = pickle.as_call(id);
        call.filter(|call| call.kind == CallKind::Reduce)
    };
    let is_setattr = |id| is_named(pickle, id, "setattr");
    let gets_setattr = |id: ObjectId| {
        let Some(call) = reduced(id) else {
            return false;
        };
        let [dill, _, default] = pickle.as_tuple(call.args).unwrap_or_default() else {
            return false;
        };
        is_named(pickle, call.callable, "getattr")
            && pickle.global(*dill) == Some(("dill", "_dill"))
            && is_setattr(*default)
    };
    let getters: HashSet<ObjectId> = pickle.ids().filter(|id| gets_setattr(*id)).collect();
    let args = getters.iter().filter_map(|id| Some(reduced(*id)?.args));
    let args: HashSet<ObjectId> = args.collect();
    let made_by_dill = |id: ObjectId| {
        let maker = reduced(id).and_then(|call| pickle.global(call.callable));
        matches!(maker, Some(("dill._dill", "_create_type" | "_create_cell")))
    };
    let completes = |call: &Call| {
        let args = pickle.as_tuple(call.args).unwrap_or_default();
        matches!(args, [made, _, _] if made_by_dill(*made))
    };
    let mut held = Vec::new();
    pickle.ids().all(|id| {
        held.clear();
        pickle.get(id).push_children(&mut held);
        let sets = |id: ObjectId| is_setattr(id) || getters.contains(&id);
        if held.iter().any(|id| args.contains(id)) && !getters.contains(&id) {
            return false;
        }
        match held.iter().filter(|id| sets(**id)).count() {
            0 => true,
            1 if args.contains(&id) => true,
            1 => reduced(id).is_some_and(|call| sets(call.callable) && completes(call)),
            _ => false,
        }
    })
}

/// Whether the object is an import of this name, wherever from.
fn is_named(pickle: &Pickle, id: ObjectId, name: &str) -> bool {
    matches!(pickle.global(id), Some((_, known)) if known == name)
}

/// The objects that hold one that `is_wanted`, and how often.
fn mentions<'p>(
    pickle: &'p Pickle<'p>,
    is_wanted: impl Fn(ObjectId) -> bool,
) -> impl Iterator<Item = (&'p Object<'p>, usize)> {
    let mut held = Vec::new();
    pickle.ids().filter_map(move |id| {
        let object = pickle.get(id);
        held.clear();
        object.push_children(&mut held);
        let mentions = held.iter().filter(|held| is_wanted(**held)).count();
        (mentions > 0).then_some((object, mentions))
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
