//! JSON objects, with their duplicate keys. `serde_json` silently takes the last value of a duplicate key, while
//! another reader may take the first, and there is no telling which is right about a user's address or roles.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::FieldError;

/// A JSON object.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// The last value of each key.
    pub(super) fields: Map<String, Value>,
    /// The keys that occur more than once, in this object or in one within it.
    pub(super) repeated: Repeated,
}

/// Keys that occur more than once, in the order in which that was found.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    keys: Vec<String>,
    /// The same: a file may be made to repeat very many.
    known: HashSet<String>,
}

impl Repeated {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Each key once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(String::as_str)
    }
}

impl Fields {
    /// Reads the value of a key.
    pub(super) fn read_value<'de, A: MapAccess<'de>>(
        &mut self,
        key: String,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let value = map.next_value_seed(Reader { repeated: &mut self.repeated })?;
        insert(&mut self.fields, &mut self.repeated, key, value);
        Ok(())
    }
}

/// The error for a duplicate key.
pub(super) fn is_repeated(key: &str) -> FieldError {
    FieldError::new(key, "duplicate_field", "is given more than once")
}

fn insert(fields: &mut Map<String, Value>, repeated: &mut Repeated, key: String, value: Value) {
    if fields.contains_key(&key) && repeated.known.insert(key.clone()) {
        repeated.keys.push(key.clone());
    }
    fields.insert(key, value);
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;

        impl<'de> Visitor<'de> for Whole {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key()? {
                    fields.read_value(key, &mut map)?;
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Whole)
    }
}

/// Reads any value.
struct Reader<'a> {
    repeated: &'a mut Repeated,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("no finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Reader { repeated: &mut *self.repeated })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Reader { repeated: &mut *self.repeated })?;
            insert(&mut fields, self.repeated, key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_they_are() {
        let value = json!({
            "a": null, "b": true, "c": -1, "d": u64::MAX, "e": 1.5, "f": "ä\n", "g": [1, [], {}, "x"], "h": { "a": { "b": 1 } },
        });
        let read: Fields = serde_json::from_str(&value.to_string()).unwrap();
        assert_eq!(Value::Object(read.fields), value);
        assert!(read.repeated.is_empty());
        for text in ["[]", "1", "null", r#"{"a":1e999}"#, "{"] {
            assert!(serde_json::from_str::<Fields>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_repeated_key_is_reported_once() {
        let text = r#"{"a":1,"b":{"c":1,"c":2},"a":2,"d":[{"e":1,"\u0065":1}],"a":3,"c":4}"#;
        let read: Fields = serde_json::from_str(text).unwrap();
        assert_eq!(read.repeated.iter().collect::<Vec<_>>(), ["c", "a", "e"]);
        assert_eq!(read.fields["a"], 3);
    }
}
