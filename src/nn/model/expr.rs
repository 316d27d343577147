//! Formulas in model files: `${width * 2}`, in Python's words and with its meaning; only what is needed is
//! computed. Whole numbers stay whole; overflow, division by zero and an index out of range are errors.

use serde_json::{Map, Number, Value};

use super::formula::{Expr, parse};
use crate::util::yaml::nearest;

/// The functions, by name.
const FUNCTIONS: [&str; 7] = ["len", "make_divisible", "max", "min", "round", "sqrt", "sum"];

/// The value of `text`, its names looked up in `scope`.
pub fn evaluate(text: &str, scope: &Map<String, Value>) -> Result<Value, String> {
    Evaluation { text, scope }.value(&parse(text)?)
}

/// The value of a name, or an error with the nearest one.
pub fn lookup<'a>(name: &str, scope: &'a Map<String, Value>) -> Result<&'a Value, String> {
    scope.get(name).ok_or_else(|| {
        let hint = match nearest(name, scope.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `${near}`?"),
            None if scope.is_empty() => "there are no arguments here; declare it under `args:`".to_string(),
            None => {
                let known: Vec<_> = scope.keys().map(|key| format!("`${key}`")).collect();
                format!("known here: {}", known.join(", "))
            }
        };
        format!("unknown argument `${name}`; {hint}")
    })
}

pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[derive(Clone, Copy)]
enum Num {
    Int(i64),
    Float(f64),
}

impl Num {
    fn float(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

struct Evaluation<'a> {
    text: &'a str,
    scope: &'a Map<String, Value>,
}

impl Evaluation<'_> {
    fn value(&self, expr: &Expr) -> Result<Value, String> {
        match expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::List(values) => values.iter().map(|value| self.value(value)).collect(),
            Expr::Name(name) => lookup(name, self.scope).cloned(),
            Expr::Negative(of) => self.arithmetic("-", Num::Int(0), self.number(of)?),
            Expr::Not(of) => Ok((!self.truth(of)?).into()),
            // As in Python the right side is not looked at where the left one decides.
            Expr::Binary("and", left, right) => Ok((self.truth(left)? && self.truth(right)?).into()),
            Expr::Binary("or", left, right) => Ok((self.truth(left)? || self.truth(right)?).into()),
            Expr::Binary(sign, left, right) if sign.contains(['=', '<', '>', '!']) => {
                self.compare(sign, left, right)
            }
            Expr::Binary(sign, left, right) => self.arithmetic(sign, self.number(left)?, self.number(right)?),
            Expr::Conditional { then, test, otherwise } => {
                self.value(if self.truth(test)? { then } else { otherwise })
            }
            Expr::Index(list, index) => {
                let list = self.list(list)?;
                let (index, length) = (self.whole(index)?, list.len());
                // Not from the end as in Python: `widths[i - 1]` at the first one must not be the last.
                usize::try_from(index)
                    .ok()
                    .and_then(|place| list.get(place))
                    .cloned()
                    .ok_or_else(|| format!("`{}`: there is no [{index}] in a list of {length}", self.text))
            }
            Expr::Slice(list, start, end) => {
                let list = self.list(list)?;
                let place = |index: &Option<Box<Expr>>, absent: usize| match index {
                    None => Ok(absent),
                    Some(index) => {
                        let index = self.whole(index)?;
                        let place = usize::try_from(index).ok().filter(|place| *place <= list.len());
                        place.ok_or_else(|| {
                            format!("`{}`: there is no [{index}] in a list of {}", self.text, list.len())
                        })
                    }
                };
                let (start, end) = (place(start, 0)?, place(end, list.len())?);
                Ok(list.get(start..end).unwrap_or_default().into())
            }
            Expr::Call(name, args) => self.call(name, args),
        }
    }

    fn call(&self, name: &str, args: &[Expr]) -> Result<Value, String> {
        let wants = |what: &str| format!("`{}`: {name} wants {what}", self.text);
        match (name, args) {
            ("len", [list]) => Ok(self.list(list)?.len().into()),
            ("sum", [list]) => {
                let mut sum = Value::from(0);
                for value in self.list(list)? {
                    sum = self.arithmetic("+", self.of(&sum, name)?, self.of(&value, name)?)?;
                }
                Ok(sum)
            }
            ("min" | "max", [first, rest @ ..]) if !rest.is_empty() => {
                let mut best = self.number(first)?;
                for other in rest {
                    let other = self.number(other)?;
                    if (other.float() < best.float()) == (name == "min") && other.float() != best.float() {
                        best = other;
                    }
                }
                self.done(best)
            }
            // As in Python, to the even one of two that are as near.
            ("round", [value]) => self.done(Num::Int(self.number(value)?.float().round_ties_even() as i64)),
            ("sqrt", [value]) => self.done(Num::Float(self.number(value)?.float().sqrt())),
            // torchvision's `_make_divisible`: the nearest multiple that is no more than 10% smaller.
            ("make_divisible", [value, divisor]) => {
                let (value, divisor) = (self.number(value)?.float(), self.whole(divisor)?);
                if divisor < 1 || !(0.0..1e12).contains(&value) {
                    return Err(wants("a value from 0 up and a divisor from 1 up"));
                }
                let near = ((value + divisor as f64 / 2.0) as i64 / divisor * divisor).max(divisor);
                let short = (near as f64) < 0.9 * value;
                self.done(Num::Int(if short { near + divisor } else { near }))
            }
            ("len" | "sum", _) => Err(wants("one list")),
            ("min" | "max", _) => Err(wants("two numbers or more")),
            ("round" | "sqrt", _) => Err(wants("one number")),
            ("make_divisible", _) => Err(wants("two numbers")),
            _ => {
                let hint = match nearest(name, FUNCTIONS.into_iter()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("functions are {}", FUNCTIONS.join(", ")),
                };
                Err(format!("`{}`: unknown function `{name}`; {hint}", self.text))
            }
        }
    }

    fn compare(&self, sign: &str, left: &Expr, right: &Expr) -> Result<Value, String> {
        let holds = match sign {
            "==" | "!=" => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                let equal = match (number(&left), number(&right)) {
                    (Some(left), Some(right)) => left.float() == right.float(),
                    _ => left == right,
                };
                equal == (sign == "==")
            }
            _ => {
                let (left, right) = (self.number(left)?.float(), self.number(right)?.float());
                match sign {
                    "<" => left < right,
                    "<=" => left <= right,
                    ">" => left > right,
                    _ => left >= right,
                }
            }
        };
        Ok(holds.into())
    }

    fn arithmetic(&self, sign: &str, left: Num, right: Num) -> Result<Value, String> {
        if right.float() == 0.0 && matches!(sign, "/" | "//" | "%") {
            return Err(format!("`{}` divides by zero", self.text));
        }
        if let (Num::Int(a), Num::Int(b)) = (left, right) {
            let whole = match sign {
                "+" => a.checked_add(b),
                "-" => a.checked_sub(b),
                "*" => a.checked_mul(b),
                "/" if a.checked_rem(b) != Some(0) => return self.done(Num::Float(a as f64 / b as f64)),
                "/" => a.checked_div(b),
                "//" => a.checked_div_euclid(b),
                _ => a.checked_rem_euclid(b),
            };
            return whole.map(Value::from).ok_or_else(|| format!("`{}` is too large", self.text));
        }
        let (a, b) = (left.float(), right.float());
        self.done(Num::Float(match sign {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            "/" => a / b,
            "//" => (a / b).floor(),
            _ => a.rem_euclid(b),
        }))
    }

    fn done(&self, value: Num) -> Result<Value, String> {
        match value {
            Num::Int(value) => Ok(value.into()),
            Num::Float(value) => Number::from_f64(value)
                .map(Value::Number)
                .ok_or_else(|| format!("`{}` is not a finite number", self.text)),
        }
    }

    fn number(&self, expr: &Expr) -> Result<Num, String> {
        let what = if let Expr::Name(name) = expr { name } else { self.text };
        self.of(&self.value(expr)?, what)
    }

    fn of(&self, value: &Value, what: &str) -> Result<Num, String> {
        number(value).ok_or_else(|| format!("`{what}` is {value}, not a number"))
    }

    fn whole(&self, expr: &Expr) -> Result<i64, String> {
        match self.number(expr)? {
            Num::Int(value) => Ok(value),
            Num::Float(value) => Err(format!("`{}`: {value} is no whole number", self.text)),
        }
    }

    fn list(&self, expr: &Expr) -> Result<Vec<Value>, String> {
        match self.value(expr)? {
            Value::Array(list) => Ok(list),
            other => Err(format!("`{}`: {other} is no list", self.text)),
        }
    }

    fn truth(&self, expr: &Expr) -> Result<bool, String> {
        match self.value(expr)? {
            Value::Bool(truth) => Ok(truth),
            other => Err(format!("`{}`: {other} is neither true nor false", self.text)),
        }
    }
}

fn number(value: &Value) -> Option<Num> {
    value.as_i64().map(Num::Int).or_else(|| value.as_f64().map(Num::Float))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::evaluate;

    #[test]
    fn arithmetic_keeps_whole_numbers_whole() {
        let scope = json!({"width": 16, "p": 0.5}).as_object().unwrap().clone();
        for (text, value) in [
            ("width * 2 + 1", json!(33)),
            ("2 * (width - 4) / 3", json!(8)),
            ("width / 3", json!(16.0 / 3.0)),
            ("width // 3", json!(5)),
            ("width % 5", json!(1)),
            ("-width + 1", json!(-15)),
            ("1 - p", json!(0.5)),
        ] {
            assert_eq!(evaluate(text, &scope), Ok(value), "{text}");
        }
    }

    #[test]
    fn lists_comparisons_and_functions_mean_what_they_mean_in_python() {
        let scope = json!({"depths": [3, 4, 6, 3], "i": 1, "act": "relu", "bn": true, "e": []});
        let scope = scope.as_object().unwrap().clone();
        for (text, value) in [
            ("depths[i + 1]", json!(6)),
            ("depths[len(depths) - 1]", json!(3)),
            ("2 if i == 1 else depths[i - 9]", json!(2)),
            ("sum(depths[:i]) + depths[i]", json!(7)),
            ("len(depths[1:])", json!(3)),
            ("depths[3:1]", json!([])),
            ("sum(e)", json!(0)),
            ("64 if i == 0 else 64 * 2", json!(128)),
            ("1 // 0 if not bn else 5", json!(5)),
            ("i > 0 and depths[i] != 3 or 1 / 0 > 0", json!(true)),
            ("act == 'relu'", json!(true)),
            ("i == 1.0", json!(true)),
            ("min(512, 64 * 2, 300)", json!(128)),
            ("max(1, 0.5)", json!(1)),
            ("round(2.5)", json!(2)),
            ("sqrt(16)", json!(4.0)),
            ("make_divisible(18, 8)", json!(24)),
            ("make_divisible(60, 8)", json!(64)),
            ("[1, i, 'x'][1]", json!(1)),
        ] {
            assert_eq!(evaluate(text, &scope), Ok(value), "{text}");
        }
        for (text, part) in [
            ("depths[4]", "there is no [4] in a list of 4"),
            ("depths[i - 2]", "there is no [-1] in a list of 4"),
            ("depths[:5]", "there is no [5] in a list of 4"),
            ("depths[0.5]", "no whole number"),
            ("i[0]", "1 is no list"),
            ("not i", "neither true nor false"),
            ("lenn(depths)", "did you mean `len`?"),
            ("sum(i)", "is no list"),
            ("sqrt(-1)", "not a finite number"),
            ("act + 1", "`act` is \"relu\", not a number"),
        ] {
            let message = evaluate(text, &scope).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn a_wrong_formula_is_an_error_and_not_a_panic() {
        let scope = json!({"width": i64::MAX, "s": "x"}).as_object().unwrap().clone();
        let (brackets, lists, minus) = ("(".repeat(100_000), "[".repeat(100_000), "-".repeat(100_000));
        let (nots, ifs) = ("not ".repeat(100_000), "1 if 1 == 1 else ".repeat(100_000));
        for text in [
            "",
            "width *",
            "width * 2",
            "1 / 0",
            "1 // 0",
            "s + 1",
            "1 2",
            "1..2",
            "wdth",
            "é",
            "'x",
            "width[",
            "[1, ",
            "1 if 2",
            "x y",
            "max(",
            "1 <",
            &brackets,
            &lists,
            &minus,
            &nots,
            &ifs,
        ] {
            assert!(evaluate(text, &scope).is_err(), "{text}");
        }
        assert!(evaluate("wdth", &scope).unwrap_err().contains("did you mean `$width`?"));
    }
}
