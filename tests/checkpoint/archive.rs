//! Writes zip archives as torch lays them out (caffe2/serialize, by way of
//! miniz), and with everything else that the format has room for.

/// An archive to be written.
#[derive(Clone, Default)]
pub struct Archive {
    pub entries: Vec<Entry>,
    pub comment: Vec<u8>,
    /// Writes the 64-bit end record, as torch always does.
    pub zip64: bool,
    /// Bytes before and after the archive.
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

/// A file in an archive, with the fields that may say something else.
#[derive(Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: u32,
    /// Pads with the extra field `FB`, so that the data begin at a multiple of 64.
    pub aligned: bool,
    /// Writes sizes behind the data and zeros in the local header.
    pub descriptor: bool,
    /// Writes sizes and offset into the 64-bit extra field of the directory.
    pub zip64: bool,
    /// More extra fields in the directory.
    pub extra: Vec<u8>,
    /// What the local header says instead.
    pub local_name: Option<Vec<u8>>,
    pub local_method: Option<u16>,
    pub local_flags: Option<u16>,
    /// What the directory says instead.
    pub size: Option<u32>,
    pub stored_size: Option<u32>,
    pub header: Option<u32>,
}

impl Entry {
    /// As torch writes it.
    pub fn new(name: &str, data: &[u8]) -> Entry {
        Entry {
            name: name.as_bytes().to_vec(),
            data: data.to_vec(),
            method: 0,
            flags: 0x0808,
            crc: crc32(data),
            aligned: true,
            descriptor: true,
            zip64: false,
            extra: Vec::new(),
            local_name: None,
            local_method: None,
            local_flags: None,
            size: None,
            stored_size: None,
            header: None,
        }
    }
}

impl Archive {
    /// What torch 2.15 writes for a pickle and its storages.
    pub fn torch(pickle: &[u8], storages: &[(&str, &[u8])]) -> Archive {
        let mut archive = Archive {
            zip64: true,
            ..Archive::default()
        };
        archive.push("model/data.pkl", pickle);
        archive.push("model/.format_version", b"1");
        archive.push("model/.storage_alignment", b"64");
        archive.push("model/byteorder", b"little");
        for (key, bytes) in storages {
            archive.push(&format!("model/data/{key}"), bytes);
        }
        archive.push("model/version", b"3\n");
        archive.push("model/.data/serialization_id", &[b'1'; 40]);
        archive
    }

    pub fn push(&mut self, name: &str, data: &[u8]) {
        self.entries.push(Entry::new(name, data));
    }

    /// The entry of this name.
    pub fn entry(&mut self, name: &str) -> &mut Entry {
        self.entries
            .iter_mut()
            .find(|entry| entry.name == name.as_bytes())
            .unwrap()
    }

    pub fn each(mut self, change: impl FnMut(&mut Entry)) -> Archive {
        self.entries.iter_mut().for_each(change);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.before.clone();
        let mut directory = Vec::new();
        for entry in &self.entries {
            let header = out.len();
            entry.write_local(&mut out);
            entry.write_central(header as u64, &mut directory);
        }
        let count = self.entries.len() as u16;
        let start = out.len() as u64;
        let size = directory.len() as u64;
        out.extend(directory);
        if self.zip64 {
            let end = out.len() as u64;
            out.extend(b"PK\x06\x06");
            out.extend(44_u64.to_le_bytes());
            out.extend([0x1e, 3, 0x2d, 0]);
            out.extend([0; 8]);
            for field in [count.into(), count.into(), size, start] {
                out.extend(field.to_le_bytes());
            }
            out.extend(b"PK\x06\x07\0\0\0\0");
            out.extend(end.to_le_bytes());
            out.extend(1_u32.to_le_bytes());
        }
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend(count.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend((size as u32).to_le_bytes());
        out.extend((start as u32).to_le_bytes());
        out.extend((self.comment.len() as u16).to_le_bytes());
        out.extend(&self.comment);
        out.extend(&self.after);
        out
    }
}

impl Entry {
    fn write_local(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let name = self.local_name.as_ref().unwrap_or(&self.name);
        let size = self.data.len() as u32;
        let sizes = if self.descriptor {
            [0; 3]
        } else {
            [self.crc, size, size]
        };
        let unpadded = start + 30 + name.len() + 4;
        let padding = if self.aligned {
            unpadded.next_multiple_of(64) - unpadded
        } else {
            0
        };
        out.extend(b"PK\x03\x04\0\0");
        out.extend(self.local_flags.unwrap_or(self.flags).to_le_bytes());
        out.extend(self.local_method.unwrap_or(self.method).to_le_bytes());
        out.extend([0; 4]);
        sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
        out.extend((name.len() as u16).to_le_bytes());
        out.extend((if self.aligned { padding as u16 + 4 } else { 0 }).to_le_bytes());
        out.extend(name);
        if self.aligned {
            out.extend(b"FB");
            out.extend((padding as u16).to_le_bytes());
            out.extend(vec![b'Z'; padding]);
        }
        out.extend(&self.data);
        if self.descriptor {
            out.extend(b"PK\x07\x08");
            [self.crc, size, size]
                .iter()
                .for_each(|field| out.extend(field.to_le_bytes()));
        }
    }

    fn write_central(&self, header: u64, out: &mut Vec<u8>) {
        let len = self.data.len() as u64;
        let mut extra = Vec::new();
        let mut sizes = [len as u32, len as u32];
        let mut offset = header as u32;
        if self.zip64 {
            extra.extend([1, 0, 24, 0]);
            [len, len, header]
                .iter()
                .for_each(|field| extra.extend(field.to_le_bytes()));
            sizes = [u32::MAX; 2];
            offset = u32::MAX;
        }
        extra.extend(&self.extra);
        out.extend(b"PK\x01\x02\0\0\0\0");
        out.extend(self.flags.to_le_bytes());
        out.extend(self.method.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.crc.to_le_bytes());
        out.extend(self.stored_size.unwrap_or(sizes[0]).to_le_bytes());
        out.extend(self.size.unwrap_or(sizes[1]).to_le_bytes());
        out.extend((self.name.len() as u16).to_le_bytes());
        out.extend((extra.len() as u16).to_le_bytes());
        out.extend([0; 10]);
        out.extend(self.header.unwrap_or(offset).to_le_bytes());
        out.extend(&self.name);
        out.extend(extra);
    }
}

pub fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
