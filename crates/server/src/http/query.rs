//! Reads a query string parameter by parameter; what nobody asked for is refused by name.
//!
//! Arrays come as `name[]=a&name[]=b` or as the bare name repeated, ranges as `name[gte]=...`.

use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use engine::port::{Order, TimeRange};
use session::Timestamp;

use super::error::ApiError;
use super::fields::suggestion;

/// A query string being read.
pub(super) struct Query {
    parameters: Vec<(String, String)>,
    asked: Vec<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Self::parse(parts.uri.query().unwrap_or(""))
    }
}

/// A query string that holds nothing.
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::parse(parts.uri.query().unwrap_or(""))?.finish().map(|()| Self)
    }
}

impl Query {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if value.contains('\0') || name.contains('\0') {
                return Err(ApiError::invalid("the query: the character U+0000 is not allowed"));
            }
            parameters.push((name, value));
        }
        // Old clients and documentation add it to every address.
        parameters.retain(|(name, _)| name != "beta");
        Ok(Self { parameters, asked: Vec::new() })
    }

    /// The value of a parameter that may be given once.
    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let mut values = self.take(name, &[name]);
        match values.len() {
            0 => Ok(None),
            1 => Ok(values.pop()),
            _ => Err(ApiError::invalid(format!("{name}: given more than once"))),
        }
    }

    /// The values of an array parameter.
    pub(super) fn strings(&mut self, name: &'static str) -> Vec<String> {
        self.take(name, &[name, &format!("{name}[]")])
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.string(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(format!("{name}: expected true or false"))),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number<N>(&mut self, name: &'static str, min: N, max: N) -> Result<Option<N>, ApiError>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.string(name)? else { return Ok(None) };
        match text.parse::<N>() {
            Ok(number) if number >= min && number <= max => Ok(Some(number)),
            _ => Err(ApiError::invalid(format!("{name}: expected a whole number from {min} to {max}"))),
        }
    }

    pub(super) fn limit(&mut self, default: usize, max: usize) -> Result<usize, ApiError> {
        Ok(self.number("limit", 1, max)?.unwrap_or(default))
    }

    pub(super) fn order(&mut self, default: Order) -> Result<Order, ApiError> {
        match self.string("order")?.as_deref() {
            None => Ok(default),
            Some("asc") => Ok(Order::Ascending),
            Some("desc") => Ok(Order::Descending),
            Some(_) => Err(ApiError::invalid("order: expected asc or desc")),
        }
    }

    /// The bounds `created_at[gt]`, `[gte]`, `[lt]` and `[lte]`, the narrowest at each end.
    pub(super) fn created_at(&mut self) -> Result<TimeRange, ApiError> {
        let from = [self.time("created_at[gte]")?, self.time("created_at[gt]")?.map(Timestamp::successor)];
        let before = [self.time("created_at[lt]")?, self.time("created_at[lte]")?.map(Timestamp::successor)];
        Ok(TimeRange { from: from.into_iter().flatten().max(), before: before.into_iter().flatten().min() })
    }

    fn time(&mut self, name: &'static str) -> Result<Option<Timestamp>, ApiError> {
        self.string(name)?
            .map(|text| text.parse().map_err(|error| ApiError::invalid(format!("{name}: {error}"))))
            .transpose()
    }

    /// Refuses whatever was not asked for.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let Some((unknown, _)) = self.parameters.first() else { return Ok(()) };
        let shown: String = unknown.chars().take(64).collect();
        Err(ApiError::invalid(format!("{shown}: unknown query parameter{}", suggestion(unknown, &self.asked))))
    }

    fn take(&mut self, asked: &'static str, names: &[&str]) -> Vec<String> {
        self.asked.push(asked);
        let mut values = Vec::new();
        self.parameters.retain_mut(|(name, value)| {
            let matches = names.contains(&name.as_str());
            if matches {
                values.push(std::mem::take(value));
            }
            !matches
        });
        values
    }
}

/// Undoes percent-encoding and `+`; what is then no UTF-8 is refused.
fn decode(text: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = (rest.next().and_then(hex_digit), rest.next().and_then(hex_digit));
                let (Some(high), Some(low)) = digits else {
                    return Err(ApiError::invalid("the query: a percent sign must be followed by two hex digits"));
                };
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("the query is not valid UTF-8"))
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
