//! An object as a pickle of protocol 2, of the opcodes that `torch.load(weights_only=True)` knows.

use anyhow::{Context, Result};

use super::{Plan, Value, View};

const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";

/// The pickle of `value`, whose tensors are the views of `plan`, in its order.
pub(super) fn pickle(value: &Value, plan: &Plan) -> Result<Vec<u8>> {
    let mut writer = Writer { out: b"\x80\x02".to_vec(), plan, views: plan.views.iter() };
    writer.value(value)?;
    writer.out.push(b'.');
    Ok(writer.out)
}

struct Writer<'a> {
    out: Vec<u8>,
    plan: &'a Plan,
    views: std::slice::Iter<'a, View>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::None => self.out.push(b'N'),
            Value::Bool(flag) => self.out.push(if *flag { 0x88 } else { 0x89 }),
            Value::Int(number) => self.integer(*number),
            Value::Float(number) => {
                self.out.push(b'G');
                self.out.extend(number.to_be_bytes());
            }
            Value::Str(text) => self.text(text)?,
            Value::Tensor(_) => {
                let view = self.views.next().context("more tensors than were planned")?;
                self.tensor(view)?;
            }
            Value::List(values) => {
                self.out.extend(b"](");
                values.iter().try_for_each(|value| self.value(value))?;
                self.out.push(b'e');
            }
            Value::Tuple(values) => {
                self.out.push(b'(');
                values.iter().try_for_each(|value| self.value(value))?;
                self.out.push(b't');
            }
            Value::Dict(items) => {
                self.out.push(b'}');
                self.items(items)?;
            }
            Value::OrderedDict(items) => {
                self.out.extend(ORDERED_DICT);
                self.items(items)?;
            }
            Value::Described(items, metadata) => {
                self.out.extend(ORDERED_DICT);
                self.items(items)?;
                self.out.extend(b"}(");
                self.text("metadata")?;
                self.value(metadata)?;
                self.out.extend(b"ub");
            }
        }
        Ok(())
    }

    fn items(&mut self, items: &[(Value, Value)]) -> Result<()> {
        self.out.push(b'(');
        for (key, value) in items {
            self.value(key)?;
            self.value(value)?;
        }
        self.out.push(b'u');
        Ok(())
    }

    /// A call of `_rebuild_tensor_v2`.
    fn tensor(&mut self, view: &View) -> Result<()> {
        let storage = &self.plan.storages[view.storage];
        // float8 has no typed storage: it is untyped bytes and the dtype is saved beside the tensor.
        let (function, class, unit) = match view.dtype.storage_class() {
            Some(class) => ("_rebuild_tensor_v2", format!("torch\n{class}"), 1),
            None => ("_rebuild_tensor_v3", "torch.storage\nUntypedStorage".into(), view.dtype.size() as i64),
        };
        self.out.extend(format!("ctorch._utils\n{function}\n((").bytes());
        self.text("storage")?;
        self.out.extend(format!("c{class}\n").bytes());
        self.text(&view.storage.to_string())?;
        self.text("cpu")?;
        self.integer(storage.len * unit);
        self.out.extend(b"tQ");
        self.integer(view.offset);
        for dims in [&view.shape, &view.strides] {
            self.out.push(b'(');
            dims.iter().for_each(|&d| self.integer(d));
            self.out.push(b't');
        }
        self.out.push(0x89);
        self.out.extend(ORDERED_DICT);
        if view.dtype.storage_class().is_none() {
            self.out.extend(format!("ctorch\n{}\n", view.dtype.name()).bytes());
        }
        self.out.extend(b"tR");
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.out.push(b'X');
        self.out.extend(u32::try_from(text.len()).context("a text of more than 4 GiB")?.to_le_bytes());
        self.out.extend(text.bytes());
        Ok(())
    }

    fn integer(&mut self, number: i64) {
        match i32::try_from(number) {
            Ok(small) => {
                self.out.push(b'J');
                self.out.extend(small.to_le_bytes());
            }
            Err(_) => {
                self.out.extend([0x8a, 8]);
                self.out.extend(number.to_le_bytes());
            }
        }
    }
}
