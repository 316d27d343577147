//! Arithmetic in model files: `${width * 2}`. Whole numbers stay whole; overflow and division by zero
//! are errors.

use serde_json::{Map, Number, Value};

use crate::util::yaml::nearest;

/// Limit of nested brackets.
const MAX_DEPTH: usize = 32;

/// The value of `text`, its names looked up in `scope`.
pub fn evaluate(text: &str, scope: &Map<String, Value>) -> Result<Value, String> {
    let mut parser = Parser { text, rest: text, scope, depth: 0 };
    let value = parser.sum()?;
    parser.blank();
    if !parser.rest.is_empty() {
        return Err(parser.unexpected());
    }
    match value {
        Num::Int(value) => Ok(value.into()),
        Num::Float(value) => Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| format!("`{text}` is not a finite number")),
    }
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

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    scope: &'a Map<String, Value>,
    depth: usize,
}

impl Parser<'_> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: &str) -> bool {
        self.blank();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn unexpected(&self) -> String {
        let what = if self.rest.is_empty() {
            "it ends too early".into()
        } else {
            format!("stuck at `{}`", self.rest)
        };
        format!("`{}` is no formula ({what}): numbers, argument names, + - * / // % and ( ) are", self.text)
    }

    fn sum(&mut self) -> Result<Num, String> {
        let mut value = self.product()?;
        loop {
            let sign = if self.take("+") {
                '+'
            } else if self.take("-") {
                '-'
            } else {
                return Ok(value);
            };
            let right = self.product()?;
            value = self.apply(sign, value, right)?;
        }
    }

    fn product(&mut self) -> Result<Num, String> {
        let mut value = self.unary()?;
        loop {
            let sign = if self.take("*") {
                '*'
            } else if self.take("//") {
                'f'
            } else if self.take("/") {
                '/'
            } else if self.take("%") {
                '%'
            } else {
                return Ok(value);
            };
            let right = self.unary()?;
            value = self.apply(sign, value, right)?;
        }
    }

    fn unary(&mut self) -> Result<Num, String> {
        let mut negative = false;
        while self.take("-") {
            negative = !negative;
        }
        let value = self.atom()?;
        if negative { self.apply('-', Num::Int(0), value) } else { Ok(value) }
    }

    fn atom(&mut self) -> Result<Num, String> {
        if self.take("(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} brackets inside each other"));
            }
            let value = self.sum()?;
            self.depth -= 1;
            return if self.take(")") { Ok(value) } else { Err(self.unexpected()) };
        }
        self.blank();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if is_name(word) {
            self.rest = rest;
            let value = lookup(word, self.scope)?;
            return number(value).ok_or_else(|| format!("`{word}` is {value}, not a number"));
        }
        let value = match word.parse::<i64>() {
            Ok(value) => Num::Int(value),
            Err(_) if word.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
                Num::Float(word.parse().map_err(|_| self.unexpected())?)
            }
            Err(_) => return Err(self.unexpected()),
        };
        self.rest = rest;
        Ok(value)
    }

    fn apply(&self, sign: char, left: Num, right: Num) -> Result<Num, String> {
        let zero = right.float() == 0.0;
        if zero && matches!(sign, '/' | 'f' | '%') {
            return Err(format!("`{}` divides by zero", self.text));
        }
        if let (Num::Int(a), Num::Int(b)) = (left, right) {
            let whole = match sign {
                '+' => a.checked_add(b),
                '-' => a.checked_sub(b),
                '*' => a.checked_mul(b),
                '/' if a.checked_rem(b) != Some(0) => return Ok(Num::Float(a as f64 / b as f64)),
                '/' => a.checked_div(b),
                'f' => a.checked_div_euclid(b),
                _ => a.checked_rem_euclid(b),
            };
            return whole.map(Num::Int).ok_or_else(|| format!("`{}` is too large", self.text));
        }
        let (a, b) = (left.float(), right.float());
        Ok(Num::Float(match sign {
            '+' => a + b,
            '-' => a - b,
            '*' => a * b,
            '/' => a / b,
            'f' => (a / b).floor(),
            _ => a.rem_euclid(b),
        }))
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
    fn a_wrong_formula_is_an_error_and_not_a_panic() {
        let scope = json!({"width": i64::MAX, "s": "x"}).as_object().unwrap().clone();
        let brackets = "(".repeat(100_000);
        for text in
            ["", "width *", "width * 2", "1 / 0", "1 // 0", "s + 1", "1 2", "1..2", "wdth", "é", &brackets]
        {
            assert!(evaluate(text, &scope).is_err(), "{text}");
        }
        assert!(evaluate("wdth", &scope).unwrap_err().contains("did you mean `$width`?"));
    }
}
