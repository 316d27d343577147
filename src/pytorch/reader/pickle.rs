//! A pickle machine that only builds data: an allow-list of opcodes of protocols 2 to 5, persistent ids for
//! storages, and no way to import or call anything. `globals.rs` has the few names it interprets.
//!
//! No opcode recurses, and every allocation is charged to the file's [`Budget`] first.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};

use super::heap::{Global, Object, ObjectArena, Record, Storage, Value};
use super::source::{Budget, Input};

/// What a growing vector may hold at once per element: the old block (half) and the new one (double).
const GROWTH: u64 = 3;
const VALUE: u64 = size_of::<Value>() as u64;
const OBJECT: u64 = size_of::<Object>() as u64;
/// Overhead of one heap block.
const BLOCK: u64 = 32;

/// The machine and what it has built so far. One machine may run several pickles of one stream.
pub struct Unpickler<'a> {
    pub heap: ObjectArena,
    pub storages: Vec<Storage>,
    pub(super) by_key: HashMap<Box<str>, u32>,
    /// The storages whose bytes are objects of the heap.
    pub(super) by_object: HashMap<u32, u32>,
    pub(super) budget: &'a Budget,
    stack: Vec<Value>,
    /// Height of the stack at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Greatest heights charged so far.
    charged: (usize, usize),
}

impl<'a> Unpickler<'a> {
    pub fn new(budget: &'a Budget) -> Unpickler<'a> {
        Unpickler {
            heap: ObjectArena::default(),
            storages: Vec::new(),
            by_key: HashMap::new(),
            by_object: HashMap::new(),
            budget,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            charged: (0, 0),
        }
    }

    /// Runs one pickle up to its STOP and returns what it describes; `input` is behind it afterwards.
    pub fn run(&mut self, input: &mut Input) -> Result<Value> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            let at = input.position();
            let opcode = input.byte()?;
            if opcode == b'.' {
                let value = self.pop().with_context(|| format!("pickle byte {at}"))?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    bail!("pickle byte {at}: it ends with values left on the stack");
                }
                return Ok(value);
            }
            self.step(opcode, input).with_context(|| format!("pickle byte {at}, opcode {opcode:#04x}"))?;
        }
    }

    fn step(&mut self, opcode: u8, input: &mut Input) -> Result<()> {
        match opcode {
            // PROTO, FRAME
            0x80 => match input.byte()? {
                0..=5 => {}
                version => bail!("pickle protocol {version} is not known"),
            },
            0x95 => {
                let len = u64::from_le_bytes(input.array()?);
                if len > input.remaining() {
                    bail!("truncated: a frame of {len} bytes, {} left", input.remaining());
                }
            }
            // Constants and numbers
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => self.push(Value::Int(i32::from_le_bytes(input.array()?).into()))?,
            b'K' => self.push(Value::Int(input.byte()?.into()))?,
            b'M' => self.push(Value::Int(u16::from_le_bytes(input.array()?).into()))?,
            b'G' => self.push(Value::Float(f64::from_be_bytes(input.array()?)))?,
            0x8a => {
                let len = input.byte()?.into();
                self.long(len, input)?;
            }
            0x8b => {
                let len = u32::from_le_bytes(input.array()?).into();
                self.long(len, input)?;
            }
            // Strings and bytes
            b'X' | b'T' | b'B' => {
                let len = u32::from_le_bytes(input.array()?).into();
                self.text(opcode, len, input)?;
            }
            0x8c | b'U' | b'C' => {
                let len = input.byte()?.into();
                self.text(opcode, len, input)?;
            }
            0x8d | 0x8e | 0x96 => {
                let len = u64::from_le_bytes(input.array()?);
                self.text(opcode, len, input)?;
            }
            // Containers
            b'(' => {
                if self.marks.len() >= self.charged.1 {
                    self.budget.charge(8 * GROWTH)?;
                    self.charged.1 = self.marks.len() + 1;
                }
                self.marks.push(self.stack.len());
            }
            b')' => self.push_object(Object::Tuple(Vec::new()))?,
            b']' => self.push_object(Object::List(Vec::new()))?,
            b'}' => self.push_object(Object::Dict(Vec::new()))?,
            0x8f => self.push_object(Object::Set(Vec::new()))?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.floor_for(count)?;
                let values = self.cut(start)?;
                self.push_object(Object::Tuple(values))?;
            }
            b't' => {
                let values = self.cut_at_mark()?;
                self.push_object(Object::Tuple(values))?;
            }
            b'l' => {
                let values = self.cut_at_mark()?;
                self.push_object(Object::List(values))?;
            }
            0x91 => {
                let values = self.cut_at_mark()?;
                self.push_object(Object::Set(values))?;
            }
            b'd' => {
                let values = self.cut_at_mark()?;
                self.push_object(Object::Dict(Vec::new()))?;
                self.set_items(values)?;
            }
            b's' => {
                let start = self.floor_for(2)?;
                let values = self.cut(start)?;
                self.set_items(values)?;
            }
            b'u' => {
                let values = self.cut_at_mark()?;
                self.set_items(values)?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' | 0x90 => {
                let values = self.cut_at_mark()?;
                self.append(values)?;
            }
            // The stack and the memo
            b'0' => {
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                let start = self.marks.pop().context("no MARK to go back to")?;
                self.stack.truncate(start);
            }
            b'2' => self.push(self.top()?)?,
            b'q' => {
                let key = input.byte()?.into();
                self.memoize(key)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(input.array()?);
                self.memoize(key)?;
            }
            0x94 => self.memoize(u32::try_from(self.memo.len())?)?,
            b'h' => {
                let key = input.byte()?.into();
                self.recall(key)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(input.array()?);
                self.recall(key)?;
            }
            // Names, which stay names
            b'c' => {
                let (module, name) = (input.line(1024)?, input.line(1024)?);
                self.push_global(String::from_utf8(module)?, String::from_utf8(name)?)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text =
                    |value| self.heap.str(value).map(str::to_owned).context("a class name that is no string");
                let (module, name) = (text(module)?, text(name)?);
                if module.len() + name.len() > 2048 {
                    bail!("a class name of {} bytes", module.len() + name.len());
                }
                self.push_global(module, name)?;
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                self.construct(class, args)?;
            }
            0x92 => {
                // Keyword arguments go beside the positional ones: nothing here is called.
                let (kwargs, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                let args = self.allocate(Object::Tuple(vec![args, kwargs]), 2 * VALUE)?;
                self.record(class, args)?;
            }
            b'i' => {
                let (module, name) = (input.line(1024)?, input.line(1024)?);
                let values = self.cut_at_mark()?;
                self.push_global(String::from_utf8(module)?, String::from_utf8(name)?)?;
                let class = self.pop()?;
                let args = self.allocate(Object::Tuple(values), 0)?;
                self.construct(class, args)?;
            }
            b'o' => {
                let mut values = self.cut_at_mark()?;
                if values.is_empty() {
                    bail!("an object without a class");
                }
                let class = values.remove(0);
                let args = self.allocate(Object::Tuple(values), 0)?;
                self.construct(class, args)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let value = self.persistent(id)?;
                self.push(value)?;
            }
            b'P' | b'I' | b'L' | b'F' | b'S' | b'V' | b'g' | b'p' => {
                bail!("a text opcode of pickle protocol 0 or 1, which torch.save cannot have written")
            }
            0x82..=0x84 => bail!("a copyreg extension code, whose meaning only its writer knows"),
            0x97 | 0x98 => bail!("an out-of-band buffer, which is not in the file"),
            _ => bail!("not a pickle opcode"),
        }
        Ok(())
    }

    pub(super) fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() >= self.charged.0 {
            self.budget.charge(VALUE * GROWTH)?;
            self.charged.0 = self.stack.len() + 1;
        }
        self.stack.push(value);
        Ok(())
    }

    /// Puts `object` on the heap; `payload` is what it owns beside itself and is not charged yet.
    pub(super) fn allocate(&mut self, object: Object, payload: u64) -> Result<Value> {
        self.budget.charge(OBJECT * GROWTH + BLOCK + payload)?;
        self.heap.push(object).context("more than four billion objects")
    }

    fn push_object(&mut self, object: Object) -> Result<()> {
        let value = self.allocate(object, 0)?;
        self.push(value)
    }

    fn push_global(&mut self, module: String, name: String) -> Result<()> {
        let payload = (module.len() + name.len()) as u64 + 2 * BLOCK + size_of::<Global>() as u64;
        let global = Global { module: module.into(), name: name.into() };
        let value = self.allocate(Object::Global(Box::new(global)), payload)?;
        self.push(value)
    }

    /// Pushes a record of `class`: inert, whatever the class is.
    pub(super) fn record(&mut self, class: Value, args: Value) -> Result<()> {
        let record = Record { class, args, state: Value::None, items: Vec::new(), elements: Vec::new() };
        let value = self.allocate(Object::Record(Box::new(record)), size_of::<Record>() as u64)?;
        self.push(value)
    }

    fn top(&self) -> Result<Value> {
        // A value below an open MARK belongs to the world outside it.
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.last().copied().filter(|_| self.stack.len() > floor).context("the stack is empty")
    }

    fn pop(&mut self) -> Result<Value> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    /// Where the top `count` values begin.
    fn floor_for(&self, count: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.len().checked_sub(count).filter(|&start| start >= floor).context("the stack is too short")
    }

    fn cut_at_mark(&mut self) -> Result<Vec<Value>> {
        let start = self.marks.pop().context("no MARK to go back to")?;
        self.cut(start)
    }

    fn cut(&mut self, start: usize) -> Result<Vec<Value>> {
        let count = self.stack.len().checked_sub(start).context("the stack is too short")?;
        self.budget.charge(count as u64 * VALUE + BLOCK)?;
        Ok(self.stack.drain(start..).collect())
    }

    fn memoize(&mut self, key: u32) -> Result<()> {
        let value = self.top()?;
        // A hash table of 24-byte slots, at worst 7/16 full, beside its half-sized predecessor.
        self.budget.charge(if self.memo.contains_key(&key) { 0 } else { 96 })?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let value = *self.memo.get(&key).with_context(|| format!("memo {key} was never stored"))?;
        self.push(value)
    }

    fn long(&mut self, len: u64, input: &mut Input) -> Result<()> {
        let bytes = input.take(len)?;
        if bytes.len() > 8 {
            return self.push_object(Object::BigInt(bytes.into()));
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut word = [fill; 8];
        word[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(word)))
    }

    fn text(&mut self, opcode: u8, len: u64, input: &mut Input) -> Result<()> {
        let bytes = input.take(len)?;
        let object = match opcode {
            b'B' | b'C' | 0x8e | 0x96 => Object::Bytes(bytes.into()),
            // Python 2 wrote its str, text or not, as BINSTRING.
            b'T' | b'U' => match String::from_utf8(bytes) {
                Ok(text) => Object::Str(text.into()),
                Err(error) => Object::Bytes(error.into_bytes().into()),
            },
            _ => Object::Str(
                String::from_utf8(bytes).map_err(|_| anyhow!("a string that is not UTF-8"))?.into(),
            ),
        };
        self.push_object(object)
    }

    fn set_items(&mut self, values: Vec<Value>) -> Result<()> {
        if !values.len().is_multiple_of(2) {
            bail!("a key without a value");
        }
        self.budget.charge(values.len() as u64 * VALUE * GROWTH)?;
        let target = self.top()?;
        let items = match self.heap.object_mut(target) {
            Some(Object::Dict(items)) => items,
            Some(Object::Record(record)) => &mut record.items,
            _ => bail!("items set on something that is no dict"),
        };
        items.extend(values.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn append(&mut self, mut values: Vec<Value>) -> Result<()> {
        self.budget.charge(values.len() as u64 * VALUE * GROWTH)?;
        let target = self.top()?;
        match self.heap.object_mut(target) {
            Some(Object::List(list) | Object::Set(list)) => list.append(&mut values),
            Some(Object::Record(record)) => record.elements.append(&mut values),
            _ => bail!("elements appended to something that is no list"),
        }
        Ok(())
    }

    fn build(&mut self, state: Value) -> Result<()> {
        let target = self.top()?;
        let class = self.heap.record(target).map(|record| record.class);
        if let Some(array) = class.map(|class| self.ndarray(class, state)).transpose()?.flatten() {
            if let Some(object) = self.heap.object_mut(target) {
                *object = Object::Tensor(Box::new(array));
            }
            return Ok(());
        }
        match self.heap.object_mut(target) {
            Some(Object::Record(record)) => record.state = state,
            // An OrderedDict's attributes (`_metadata` of a state_dict), a tensor's Python attributes.
            Some(_) => {}
            None => bail!("a state set on a plain value"),
        }
        Ok(())
    }
}
