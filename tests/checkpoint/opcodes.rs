//! Writes pickles of torch objects, one opcode after the other.

/// `str`
pub fn text(text: &str) -> Vec<u8> {
    [
        b"X",
        &(text.len() as u32).to_le_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

/// `int`
pub fn int(value: i64) -> Vec<u8> {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

pub fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [b"](".to_vec(), items.concat(), b"e".to_vec()].concat()
}

pub fn dict(items: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items
        .iter()
        .map(|(key, value)| [&key[..], value].concat())
        .collect();
    [b"}(".to_vec(), items.concat(), b"u".to_vec()].concat()
}

pub fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

/// `callable(*args)`
pub fn call(callable: Vec<u8>, args: &[Vec<u8>]) -> Vec<u8> {
    [callable, tuple(args), b"R".to_vec()].concat()
}

/// `class.__new__(class, *args)`
pub fn new(class: Vec<u8>, args: &[Vec<u8>]) -> Vec<u8> {
    [class, tuple(args), b"\x81".to_vec()].concat()
}

/// `object.__setstate__(state)`
pub fn build(object: Vec<u8>, state: Vec<u8>) -> Vec<u8> {
    [object, state, b"b".to_vec()].concat()
}

pub const FALSE: &[u8] = b"\x89";
pub const TRUE: &[u8] = b"\x88";
pub const NONE: &[u8] = b"N";

/// The storage `key` of so many elements of a class such as `FloatStorage`.
pub fn storage(class: &str, key: &str, elements: i64) -> Vec<u8> {
    let id = [
        text("storage"),
        global("torch", class),
        text(key),
        text("cpu"),
        int(elements),
    ];
    [tuple(&id), b"Q".to_vec()].concat()
}

pub fn ints(values: &[i64]) -> Vec<u8> {
    tuple(&values.iter().copied().map(int).collect::<Vec<_>>())
}

/// `collections.OrderedDict()`
pub fn ordered_dict() -> Vec<u8> {
    call(global("collections", "OrderedDict"), &[])
}

/// The arguments of `_rebuild_tensor_v2`.
pub fn view(storage: Vec<u8>, offset: i64, size: &[i64], stride: &[i64]) -> Vec<Vec<u8>> {
    vec![
        storage,
        int(offset),
        ints(size),
        ints(stride),
        FALSE.to_vec(),
        ordered_dict(),
    ]
}

pub fn rebuild(args: &[Vec<u8>]) -> Vec<u8> {
    call(global("torch._utils", "_rebuild_tensor_v2"), args)
}

/// A tensor of four floats in storage `0`.
pub fn floats() -> Vec<u8> {
    rebuild(&view(storage("FloatStorage", "0", 4), 0, &[4], &[1]))
}

/// A pickle of protocol 2.
pub fn pickle(object: Vec<u8>) -> Vec<u8> {
    [b"\x80\x02".to_vec(), object, b".".to_vec()].concat()
}

/// `{"w": tensor}`
pub fn named(tensor: Vec<u8>) -> Vec<u8> {
    pickle(dict(&[(text("w"), tensor)]))
}
