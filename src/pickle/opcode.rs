//! The opcodes of pickle protocols 0 to 5 and their names.
//!
//! Source: `Lib/pickletools.py` of CPython.

macro_rules! opcodes {
    ($($variant:ident $name:ident = $byte:literal,)*) => {
        /// One opcode; the discriminant is its byte.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Opcode {
            $($variant = $byte,)*
        }

        const TABLE: [Option<Opcode>; 256] = {
            let mut table = [None; 256];
            $(table[$byte as usize] = Some(Opcode::$variant);)*
            table
        };

        impl Opcode {
            pub(super) fn from_byte(byte: u8) -> Option<Opcode> {
                TABLE[usize::from(byte)]
            }

            /// The name `pickletools` gives it.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Opcode::$variant => stringify!($name),)*
                }
            }
        }
    };
}

/// What follows the byte of an opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    /// Up to [`Argument::FIXED`] bytes, or none.
    Fixed,
    /// A length in so many bytes, and a payload.
    Payload(usize),
    /// A length in so many bytes, and an integer.
    Integer(usize),
    /// A line with a number.
    Number,
    /// A line with a module and one with a name.
    Names,
    /// A line of any length.
    Text,
}

impl Argument {
    /// Bytes of the longest argument of fixed size, and of the longest length.
    pub(super) const FIXED: u64 = 8;
}

impl Opcode {
    pub(super) fn argument(self) -> Argument {
        match self {
            Opcode::ShortBinString | Opcode::ShortBinUnicode | Opcode::ShortBinBytes => {
                Argument::Payload(1)
            }
            Opcode::BinString | Opcode::BinUnicode | Opcode::BinBytes => Argument::Payload(4),
            Opcode::BinUnicode8 | Opcode::BinBytes8 | Opcode::ByteArray8 => Argument::Payload(8),
            Opcode::Long1 => Argument::Integer(1),
            Opcode::Long4 => Argument::Integer(4),
            Opcode::Int | Opcode::Long | Opcode::Float | Opcode::Get | Opcode::Put => {
                Argument::Number
            }
            Opcode::Global | Opcode::Inst => Argument::Names,
            Opcode::String | Opcode::Unicode | Opcode::PersId => Argument::Text,
            _ => Argument::Fixed,
        }
    }
}

opcodes! {
    // Protocol 0: text.
    Mark MARK = b'(',
    Stop STOP = b'.',
    Pop POP = b'0',
    Dup DUP = b'2',
    Float FLOAT = b'F',
    Int INT = b'I',
    Long LONG = b'L',
    None NONE = b'N',
    PersId PERSID = b'P',
    Reduce REDUCE = b'R',
    String STRING = b'S',
    Unicode UNICODE = b'V',
    Append APPEND = b'a',
    Build BUILD = b'b',
    Global GLOBAL = b'c',
    Dict DICT = b'd',
    Get GET = b'g',
    Inst INST = b'i',
    List LIST = b'l',
    Put PUT = b'p',
    SetItem SETITEM = b's',
    Tuple TUPLE = b't',
    // Protocol 1: binary.
    PopMark POP_MARK = b'1',
    BinFloat BINFLOAT = b'G',
    BinInt BININT = b'J',
    BinInt1 BININT1 = b'K',
    BinInt2 BININT2 = b'M',
    BinPersId BINPERSID = b'Q',
    BinString BINSTRING = b'T',
    ShortBinString SHORT_BINSTRING = b'U',
    BinUnicode BINUNICODE = b'X',
    EmptyTuple EMPTY_TUPLE = b')',
    EmptyList EMPTY_LIST = b']',
    EmptyDict EMPTY_DICT = b'}',
    Appends APPENDS = b'e',
    BinGet BINGET = b'h',
    LongBinGet LONG_BINGET = b'j',
    Obj OBJ = b'o',
    BinPut BINPUT = b'q',
    LongBinPut LONG_BINPUT = b'r',
    SetItems SETITEMS = b'u',
    // Protocol 2: new-style classes, small integers.
    Proto PROTO = 0x80,
    NewObj NEWOBJ = 0x81,
    Ext1 EXT1 = 0x82,
    Ext2 EXT2 = 0x83,
    Ext4 EXT4 = 0x84,
    Tuple1 TUPLE1 = 0x85,
    Tuple2 TUPLE2 = 0x86,
    Tuple3 TUPLE3 = 0x87,
    NewTrue NEWTRUE = 0x88,
    NewFalse NEWFALSE = 0x89,
    Long1 LONG1 = 0x8a,
    Long4 LONG4 = 0x8b,
    // Protocol 3: bytes.
    BinBytes BINBYTES = b'B',
    ShortBinBytes SHORT_BINBYTES = b'C',
    // Protocol 4: sets, frames, 64-bit lengths.
    ShortBinUnicode SHORT_BINUNICODE = 0x8c,
    BinUnicode8 BINUNICODE8 = 0x8d,
    BinBytes8 BINBYTES8 = 0x8e,
    EmptySet EMPTY_SET = 0x8f,
    AddItems ADDITEMS = 0x90,
    FrozenSet FROZENSET = 0x91,
    NewObjEx NEWOBJ_EX = 0x92,
    StackGlobal STACK_GLOBAL = 0x93,
    Memoize MEMOIZE = 0x94,
    Frame FRAME = 0x95,
    // Protocol 5: bytearrays and buffers beside the pickle.
    ByteArray8 BYTEARRAY8 = 0x96,
    NextBuffer NEXT_BUFFER = 0x97,
    ReadOnlyBuffer READONLY_BUFFER = 0x98,
}
