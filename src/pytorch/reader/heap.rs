//! The inert object tree that a pickle describes: an arena, so that sharing, cycles and any depth cost
//! nothing to hold and nothing to drop.

use std::borrow::Cow;

use super::dtype::Dtype;

/// A value: small ones in place, the others an index into the [`ObjectArena`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Ref(u32),
}

#[derive(Debug)]
pub enum Object {
    Str(Box<str>),
    Bytes(Box<[u8]>),
    /// An integer beyond 64 bits: little-endian two's complement.
    BigInt(Box<[u8]>),
    Complex(f64, f64),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Set(Vec<Value>),
    /// In insertion order. A key may occur twice in a hostile file; the last one counts.
    Dict(Vec<(Value, Value)>),
    /// A class or function by name; never imported.
    Global(Box<Global>),
    Storage(Box<StorageRef>),
    Tensor(Box<TensorInfo>),
    /// An instance of a class that means nothing here.
    Record(Box<Record>),
}

#[derive(Debug)]
pub struct Global {
    pub module: Box<str>,
    pub name: Box<str>,
}

/// What would have been an object: its class, the arguments of its constructor, its state.
#[derive(Debug)]
pub struct Record {
    /// Usually a [`Object::Global`].
    pub class: Value,
    pub args: Value,
    pub state: Value,
    /// Of subclasses of dict.
    pub items: Vec<(Value, Value)>,
    /// Of subclasses of list and set.
    pub elements: Vec<Value>,
}

/// A storage, or a part of one, as a persistent id names it.
#[derive(Clone, Debug)]
pub struct StorageRef {
    /// Index into the file's storages.
    pub index: u32,
    /// None for an untyped storage, counted in bytes.
    pub dtype: Option<Dtype>,
    /// First element and number of elements (bytes if untyped).
    pub offset: u64,
    pub len: u64,
}

/// A strided view of a storage. Its extent lies within the storage: checked when it was made.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub storage: u32,
    pub dtype: Dtype,
    /// In elements, from the storage's first byte.
    pub offset: u64,
    pub shape: Vec<i64>,
    /// In elements, none negative.
    pub strides: Vec<i64>,
    /// Lazy conjugate and negative views.
    pub conj: bool,
    pub neg: bool,
}

impl TensorInfo {
    /// Number of elements; cannot overflow, that was checked.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// One storage of the file, before it is read.
#[derive(Clone, Debug)]
pub struct Storage {
    pub key: Box<str>,
    /// As the pickle declares it.
    pub bytes: u64,
    /// Bytes of one element; 1 for an untyped storage.
    pub unit: u64,
    /// The bytes are this object of the heap, as numpy's arrays have theirs in the pickle, and no part of the
    /// file.
    pub inline: Option<u32>,
}

#[derive(Default)]
pub struct ObjectArena {
    objects: Vec<Object>,
}

impl ObjectArena {
    /// `None` when four billion objects are reached.
    pub fn push(&mut self, object: Object) -> Option<Value> {
        let index = u32::try_from(self.objects.len()).ok()?;
        self.objects.push(object);
        Some(Value::Ref(index))
    }

    pub fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Ref(index) => self.objects.get(index as usize),
            _ => None,
        }
    }

    pub fn object_mut(&mut self, value: Value) -> Option<&mut Object> {
        match value {
            Value::Ref(index) => self.objects.get_mut(index as usize),
            _ => None,
        }
    }

    pub fn str(&self, value: Value) -> Option<&str> {
        match self.object(value)? {
            Object::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn tensor(&self, value: Value) -> Option<&TensorInfo> {
        match self.object(value)? {
            Object::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    pub fn record(&self, value: Value) -> Option<&Record> {
        match self.object(value)? {
            Object::Record(record) => Some(record),
            _ => None,
        }
    }

    pub fn global(&self, value: Value) -> Option<&Global> {
        match self.object(value)? {
            Object::Global(global) => Some(global),
            _ => None,
        }
    }

    /// The elements of a tuple, list or set.
    pub fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::Tuple(values) | Object::List(values) | Object::Set(values) => Some(values),
            _ => None,
        }
    }

    /// The items of a dict, or of a record of a subclass of dict.
    pub fn items(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.object(value)? {
            Object::Dict(items) => Some(items),
            Object::Record(record) if !record.items.is_empty() => Some(&record.items),
            _ => None,
        }
    }

    /// A dict's key as text: a text as it is, bytes that are UTF-8 as that text, numbers and None as Python
    /// prints them, tuples by their parts, objects by their class.
    pub fn key(&self, key: Value) -> Cow<'_, str> {
        match self.object(key) {
            Some(Object::Str(text)) => (&**text).into(),
            Some(Object::Bytes(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => text.into(),
                Err(_) => format!("b'{}'", bytes[..bytes.len().min(64)].escape_ascii()).into(),
            },
            _ => self.short_key(key, 0).into(),
        }
    }

    /// Bounded, whatever the file nests.
    fn short_key(&self, key: Value, depth: usize) -> String {
        const MAX_PARTS: usize = 8;
        match key {
            Value::None => return "None".into(),
            Value::Bool(flag) => return if flag { "True" } else { "False" }.into(),
            Value::Int(number) => return number.to_string(),
            Value::Float(number) => return format!("{number:?}"),
            Value::Ref(_) => {}
        }
        let parts = |values: &[Value]| {
            let parts = values.iter().take(MAX_PARTS).map(|&value| self.short_key(value, depth + 1));
            parts.collect::<Vec<_>>().join(", ")
        };
        match self.object(key) {
            Some(Object::Str(_) | Object::Bytes(_)) => self.key(key).chars().take(64).collect(),
            Some(Object::Tuple(values)) if depth < 2 => format!("({})", parts(values)),
            Some(Object::Record(record)) => {
                let args = self.sequence(record.args).filter(|_| depth < 2).unwrap_or_default();
                format!("{}({})", self.class_name(key).unwrap_or_default(), parts(args))
            }
            Some(Object::Global(global)) => global.full_name(),
            _ => "<a value>".into(),
        }
    }

    /// The value under a string key of a dict.
    pub fn get(&self, value: Value, key: &str) -> Option<Value> {
        self.items(value)?.iter().rev().find(|(k, _)| self.str(*k) == Some(key)).map(|(_, v)| *v)
    }

    /// An attribute of a record: a key of its state, which is a dict or the pair (dict, slots).
    pub fn attribute(&self, value: Value, key: &str) -> Option<Value> {
        self.get(self.attributes(value)?, key)
    }

    /// The dict that is a record's state.
    pub fn attributes(&self, value: Value) -> Option<Value> {
        let state = self.record(value)?.state;
        match self.object(state)? {
            Object::Dict(_) => Some(state),
            Object::Tuple(pair) => pair.first().copied().filter(|&v| self.items(v).is_some()),
            _ => None,
        }
    }

    /// `module.name` of a record's class, or of a class itself.
    pub fn class_name(&self, value: Value) -> Option<String> {
        match self.object(value)? {
            Object::Record(record) => match self.global(record.class) {
                Some(global) => Some(global.full_name()),
                None => Some("an unnamed callable".into()),
            },
            Object::Global(global) => Some(global.full_name()),
            _ => None,
        }
    }
}

impl Global {
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.module, self.name)
    }
}
