//! One key's value and metadata: read, write, delete (rest-api 3.2 to 3.5).

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};

use super::{
    Answer, Call, DRAIN_BYTES_MAX, Rest,
    envelope::{Failure, raw_success, success},
    multipart,
    upload::Upload,
};
use crate::{
    api::{
        body::Response,
        error::{KEY_NOT_FOUND, MALFORMED},
        query::{decode_key, expires, whole_number},
    },
    error::{Error, Result},
    kv::{
        Change, Entry, Expires, Key, NamespaceId, Read, Rights, State, Value, ValueStream, Version, Via, Written,
        too_large,
    },
    limits, wire,
};

impl Rest {
    pub(super) async fn get_value(&self, call: &Call<'_>, id: &str, key: &str) -> Answer {
        let namespace = self.namespace(call, id, Rights::Read).await?;
        let (entry, version) = self.entry(namespace, &decode_key(key)?).await?;
        let mut response = Response::new(entry.value.into());
        let headers = response.headers_mut();
        // Exactly this: cloudflare-rs gives up on anything else (client-calls 8).
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if let Some(expiration) = entry.expiration {
            headers.insert("expiration", HeaderValue::from(expiration));
        }
        insert_version(&mut response, version);
        Ok(response)
    }

    pub(super) async fn get_metadata(&self, call: &Call<'_>, id: &str, key: &str) -> Answer {
        let namespace = self.namespace(call, id, Rights::Read).await?;
        let (entry, version) = self.entry(namespace, &decode_key(key)?).await?;
        let mut response = raw_success(entry.metadata.as_deref().unwrap_or(b"null"), None);
        insert_version(&mut response, version);
        Ok(response)
    }

    async fn entry(&self, namespace: NamespaceId, key: &Key) -> Result<(Entry, Version), Failure> {
        let answer = self.backend.get(namespace, key, &Read::latest()).await?;
        match answer.state {
            State::Present(entry) => Ok((entry, answer.version)),
            State::Absent => Err(Failure::new(KEY_NOT_FOUND, "key not found")),
            State::Unchanged { .. } => {
                Err(Error::internal("a question without a held version was answered 'unchanged'").into())
            }
        }
    }

    pub(super) async fn delete_value(&self, call: &Call<'_>, id: &str, key: &str) -> Answer {
        let namespace = self.namespace(call, id, Rights::Write).await?;
        let written = self.backend.write(namespace, &decode_key(key)?, Change::Delete, Via::default()).await?;
        Ok(acknowledged(written))
    }

    pub(super) async fn put_value(&self, call: &Call<'_>, id: &str, key: &str, upload: &mut Upload) -> Answer {
        let namespace = self.namespace(call, id, Rights::Write).await?;
        let key = decode_key(key)?;
        let now = self.clock.wall_millis() / 1000;
        let expires = expires(call.query.get("expiration_ttl"), call.query.get("expiration"), now, whole_number)?;
        match call.parts.headers.get(header::CONTENT_TYPE).map(form_boundary) {
            Some(Some(boundary)) => self.put_form(namespace, &key, expires, boundary?, upload).await,
            _ => self.put_raw(namespace, &key, expires, upload).await,
        }
    }

    async fn put_form(
        &self,
        namespace: NamespaceId,
        key: &Key,
        expires: Expires,
        boundary: String,
        upload: &Upload,
    ) -> Answer {
        let form = multipart::read(upload, boundary, &self.spool_room).await?;
        let value = form.value.value(0..form.value.length());
        let change = Change::Put { value, metadata: form.metadata, expires };
        Ok(acknowledged(self.backend.write(namespace, key, change, Via::default()).await?))
    }

    /// A body that is the value. A small one is gathered, so that it is written in one piece; a larger one goes on as it arrives.
    async fn put_raw(&self, namespace: NamespaceId, key: &Key, expires: Expires, upload: &mut Upload) -> Answer {
        if upload.announced().is_some_and(|length| length > limits::VALUE_BYTES_MAX) {
            return Err(self.too_large(upload).await.into());
        }
        let _room = self.buffers.try_take(limits::CHUNK_BYTES as u64)?;
        let mut first = BytesMut::new();
        let mut whole = false;
        while !whole && first.len() <= limits::CHUNK_BYTES {
            match upload.chunk().await? {
                Some(chunk) => first.extend_from_slice(&chunk),
                None => whole = true,
            }
        }
        let value = match whole {
            true => Value::Whole(first.freeze()),
            false => Value::Stream(ValueStream { length: upload.announced(), chunks: limited(first.freeze(), upload) }),
        };
        let change = Change::Put { value, metadata: None, expires };
        match self.backend.write(namespace, key, change, Via::default()).await {
            Ok(written) => Ok(acknowledged(written)),
            // What was wrong with the body says more than how the writer came to notice.
            Err(_) if upload.read() > limits::VALUE_BYTES_MAX => Err(self.too_large(upload).await.into()),
            Err(error) => Err(upload.failure().unwrap_or(error).into()),
        }
    }

    /// The text names the true length, so a body of unknown length is read to its end first.
    async fn too_large(&self, upload: &mut Upload) -> Error {
        upload.drain(DRAIN_BYTES_MAX).await;
        too_large(upload.announced().unwrap_or(upload.read()), limits::VALUE_BYTES_MAX)
    }
}

/// What came first and then the rest; an error as soon as it is longer than a value may be.
fn limited(first: Bytes, upload: &Upload) -> stream::BoxStream<'static, Result<Bytes>> {
    let counted = upload.clone();
    let check = move |chunk: Result<Bytes>| match counted.read() {
        length if length > limits::VALUE_BYTES_MAX => Err(too_large(length, limits::VALUE_BYTES_MAX)),
        _ => chunk,
    };
    stream::once(std::future::ready(Ok(first))).chain(upload.clone()).map(check).boxed()
}

/// The boundary that a content type names, if it is a form's; any other type is a value's own business.
fn form_boundary(content_type: &HeaderValue) -> Option<Result<String, Failure>> {
    let text = content_type.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or(text).trim();
    essence.eq_ignore_ascii_case("multipart/form-data").then(|| {
        multer::parse_boundary(text)
            .map_err(|error| Failure::new(MALFORMED, format!("could not read the content type {text}: {error}")))
    })
}

fn acknowledged(written: Written) -> Response {
    let mut response = success(&());
    insert_version(&mut response, written.version);
    response
}

/// So that a read elsewhere can ask for at least this one.
fn insert_version(response: &mut Response, version: Version) {
    let value = HeaderValue::try_from(version.to_string()).expect("hexadecimal digits make a header");
    response.headers_mut().insert(wire::VERSION, value);
}
