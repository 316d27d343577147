//! The grammar of formulas, a part of Python's: numbers, 'text', names, lists, + - * / // %, comparisons,
//! `and`, `or`, `not`, `a if test else b`, `list[i]`, `list[a:b]` and calls of functions.

use serde_json::{Number, Value};

use super::expr::is_name;

/// Limit of expressions inside each other.
const MAX_DEPTH: usize = 32;

#[derive(Debug)]
pub enum Expr {
    Literal(Value),
    List(Vec<Expr>),
    Name(String),
    Negative(Box<Expr>),
    Not(Box<Expr>),
    /// By its sign, such as `//` or `and`.
    Binary(&'static str, Box<Expr>, Box<Expr>),
    Conditional {
        then: Box<Expr>,
        test: Box<Expr>,
        otherwise: Box<Expr>,
    },
    Index(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Option<Box<Expr>>, Option<Box<Expr>>),
    Call(String, Vec<Expr>),
}

/// The formula that `text` is.
pub fn parse(text: &str) -> Result<Expr, String> {
    let mut parser = Parser { text, rest: text, depth: 0 };
    let expr = parser.expr()?;
    parser.blank();
    if parser.rest.is_empty() { Ok(expr) } else { Err(parser.unexpected()) }
}

/// Binary signs from those that bind least; of two that begin alike the longer first.
const LEVELS: [&[&str]; 5] =
    [&["or"], &["and"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "//", "/", "%"]];
/// The level at which `not` is read: it binds less than a comparison.
const COMPARISON: usize = 2;

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes a sign, or a whole word.
    fn take(&mut self, sign: &str) -> bool {
        self.blank();
        let is_word = sign.ends_with(|c: char| c.is_ascii_alphabetic());
        match self.rest.strip_prefix(sign) {
            Some(rest) if !(is_word && rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(self.unexpected()) }
    }

    fn unexpected(&self) -> String {
        let what = if self.rest.is_empty() {
            "it ends too early".into()
        } else {
            format!("stuck at `{}`", self.rest)
        };
        format!("`{}` is no formula ({what}): numbers, argument names, + - * / // % and ( ) are", self.text)
    }

    /// One level further inside.
    fn inside<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} brackets inside each other"));
        }
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn expr(&mut self) -> Result<Expr, String> {
        let then = self.binary(0)?;
        if !self.take("if") {
            return Ok(then);
        }
        let test = Box::new(self.binary(0)?);
        self.expect("else")?;
        let otherwise = Box::new(self.inside(Self::expr)?);
        Ok(Expr::Conditional { then: Box::new(then), test, otherwise })
    }

    fn binary(&mut self, level: usize) -> Result<Expr, String> {
        if level == COMPARISON && self.take("not") {
            return Ok(Expr::Not(Box::new(self.inside(|parser| parser.binary(level))?)));
        }
        let Some(signs) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(sign) = signs.iter().find(|sign| self.take(sign)) {
            left = Expr::Binary(sign, Box::new(left), Box::new(self.binary(level + 1)?));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, String> {
        if self.take("-") {
            return Ok(Expr::Negative(Box::new(self.inside(Self::unary)?)));
        }
        let mut value = self.atom()?;
        while self.take("[") {
            value = self.inside(|parser| parser.index(value))?;
        }
        Ok(value)
    }

    /// After `[`.
    fn index(&mut self, list: Expr) -> Result<Expr, String> {
        let list = Box::new(list);
        let start = if self.take(":") { None } else { Some(Box::new(self.expr()?)) };
        if let Some(index) = start {
            if self.take("]") {
                return Ok(Expr::Index(list, index));
            }
            self.expect(":")?;
            return self.slice(list, Some(index));
        }
        self.slice(list, None)
    }

    /// After `:`.
    fn slice(&mut self, list: Box<Expr>, start: Option<Box<Expr>>) -> Result<Expr, String> {
        if self.take("]") {
            return Ok(Expr::Slice(list, start, None));
        }
        let end = Box::new(self.expr()?);
        self.expect("]")?;
        Ok(Expr::Slice(list, start, Some(end)))
    }

    /// Expressions with commas between them, up to `end`.
    fn until(&mut self, end: &str) -> Result<Vec<Expr>, String> {
        let mut values = Vec::new();
        if self.take(end) {
            return Ok(values);
        }
        loop {
            values.push(self.expr()?);
            if self.take(end) {
                return Ok(values);
            }
            self.expect(",")?;
        }
    }

    fn atom(&mut self) -> Result<Expr, String> {
        if self.take("(") {
            let value = self.inside(Self::expr)?;
            self.expect(")")?;
            return Ok(value);
        }
        if self.take("[") {
            return Ok(Expr::List(self.inside(|parser| parser.until("]"))?));
        }
        if self.take("'") {
            let (text, rest) = self.rest.split_once('\'').ok_or_else(|| self.unexpected())?;
            self.rest = rest;
            return Ok(Expr::Literal(text.into()));
        }
        self.blank();
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if is_name(word) {
            self.rest = rest;
            return match word {
                "true" | "false" => Ok(Expr::Literal((word == "true").into())),
                _ if self.take("(") => Ok(Expr::Call(word.into(), self.inside(|parser| parser.until(")"))?)),
                _ => Ok(Expr::Name(word.into())),
            };
        }
        let value = match word.parse::<i64>() {
            Ok(value) => value.into(),
            Err(_) if word.starts_with(|c: char| c.is_ascii_digit() || c == '.') => word
                .parse()
                .ok()
                .and_then(Number::from_f64)
                .map(Value::Number)
                .ok_or_else(|| self.unexpected())?,
            Err(_) => return Err(self.unexpected()),
        };
        self.rest = rest;
        Ok(Expr::Literal(value))
    }
}
