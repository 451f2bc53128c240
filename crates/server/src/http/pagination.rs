//! Pages: opaque cursors, and the envelope of a list.
//!
//! A cursor says which list it belongs to, in which order, and behind which item the next page begins. It is
//! base64 of JSON: nothing in it is secret, and a forged one can only name another place in the same list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::port::{After, Order, TimeRange};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session::Timestamp;

use super::error::ApiError;
use super::query::Query;

/// Names a list, and what it is a list of, so that no cursor works in another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListName {
    #[serde(rename = "l")]
    pub(super) list: String,
    /// The id of the resource whose list it is; empty for lists of everything.
    #[serde(rename = "s", default, skip_serializing_if = "String::is_empty")]
    pub(super) scope: String,
}

impl ListName {
    pub(super) fn of(list: &str) -> Self {
        Self { list: list.to_owned(), scope: String::new() }
    }

    pub(super) fn within(list: &str, scope: &str) -> Self {
        Self { list: list.to_owned(), scope: scope.to_owned() }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor<P> {
    #[serde(rename = "n")]
    name: ListName,
    #[serde(rename = "d", default)]
    descending: bool,
    #[serde(rename = "p")]
    place: P,
}

/// The cursor of `place` in a list.
pub(super) fn encode<P: Serialize>(name: &ListName, order: Order, place: &P) -> String {
    let cursor = Cursor { name: name.clone(), descending: order == Order::Descending, place };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).expect("a cursor serialises"))
}

/// The place that the request's `page` names, if it has one.
pub(super) fn decode<P>(query: &mut Query, name: &ListName, order: Order) -> Result<Option<P>, ApiError>
where
    P: for<'de> Deserialize<'de>,
{
    let text = query.string("page")?.filter(|text| !text.is_empty());
    text.map(|text| read(&text, name, order)).transpose()
}

/// The place that a cursor names.
pub(super) fn read<P>(text: &str, name: &ListName, order: Order) -> Result<P, ApiError>
where
    P: for<'de> Deserialize<'de>,
{
    let invalid = || ApiError::invalid("page: not a cursor of this list; use next_page of an earlier answer");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
    let cursor: Cursor<P> = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if cursor.name != *name {
        return Err(invalid());
    }
    if cursor.descending != (order == Order::Descending) {
        return Err(ApiError::invalid("page: the cursor was made with another order; keep order while paging"));
    }
    Ok(cursor.place)
}

/// A place in a list of resources ordered by creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreatedPlace {
    /// Microseconds since the Unix epoch.
    #[serde(rename = "t")]
    created_at_micros: i64,
    #[serde(rename = "i")]
    id: String,
    /// The page lies before this place, not behind it.
    #[serde(rename = "b", default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) backwards: bool,
}

impl CreatedPlace {
    pub(super) fn new(created_at: Timestamp, id: &str) -> Self {
        Self { created_at_micros: created_at.as_micros(), id: id.to_owned(), backwards: false }
    }

    pub(super) fn backwards(self) -> Self {
        Self { backwards: true, ..self }
    }

    /// The place as the store takes it, if the filter on creation still lets it be.
    pub(super) fn within(&self, range: TimeRange) -> Result<After, ApiError> {
        let created_at = Timestamp::from_micros(self.created_at_micros);
        let excluded = range.from.is_some_and(|from| created_at < from)
            || range.before.is_some_and(|before| created_at >= before)
            || self.id.contains('\0');
        if excluded {
            return Err(ApiError::invalid("page: created_at now excludes the place that the cursor names"));
        }
        Ok(After { created_at, id: self.id.clone() })
    }
}

/// Splits what was read with one item too many into a page and whether there is more.
pub(super) fn cut<T>(mut items: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let more = items.len() > limit;
    items.truncate(limit);
    (items, more)
}

/// The envelope of a list.
pub(super) fn page(data: Vec<Value>, next_page: Option<String>) -> Value {
    json!({"data": data, "next_page": next_page})
}
