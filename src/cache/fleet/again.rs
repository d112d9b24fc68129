//! A change that may have to be handed in more than once.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    error::{Error, Result},
    kv::{Change, Expires, Value, ValueStream},
};

pub(super) enum Again {
    Delete,
    Put { value: Repeatable, metadata: Option<Bytes>, expires: Expires },
}

pub(super) enum Repeatable {
    Whole(Bytes),
    Parts(Arc<[Bytes]>),
    /// Once something has been taken of it, it can't be had from the beginning any more.
    Stream {
        length: Option<u64>,
        chunks: Arc<Mutex<BoxStream<'static, Result<Bytes>>>>,
        taken: Arc<AtomicBool>,
        /// Which hand-in it is the turn of: an earlier one, whose connection may go on reading for a moment, gets nothing more.
        turn: Arc<AtomicU64>,
    },
}

impl Again {
    pub(super) fn new(change: Change) -> Again {
        let Change::Put { value, metadata, expires } = change else { return Again::Delete };
        let value = match value {
            Value::Whole(bytes) => Repeatable::Whole(bytes),
            Value::Parts(parts) => Repeatable::Parts(parts),
            Value::Stream(ValueStream { length, chunks }) => {
                // Whoever was handed it before may ask it once more past its end.
                Repeatable::Stream {
                    length,
                    chunks: Arc::new(Mutex::new(chunks.fuse().boxed())),
                    taken: Arc::default(),
                    turn: Arc::default(),
                }
            }
        };
        Again::Put { value, metadata, expires }
    }

    /// Whether the bytes come from somebody who is still sending them: then they take as long as they take.
    pub(super) fn is_arriving(&self) -> bool {
        matches!(self, Again::Put { value: Repeatable::Stream { .. }, .. })
    }

    /// The change once more; `None` if that is not possible any more.
    pub(super) fn change(&self) -> Option<Change> {
        let Again::Put { value, metadata, expires } = self else { return Some(Change::Delete) };
        let value = match value {
            Repeatable::Whole(bytes) => Value::Whole(bytes.clone()),
            Repeatable::Parts(parts) => Value::Parts(Arc::clone(parts)),
            Repeatable::Stream { length, chunks, taken, turn } => {
                let (chunks, taken, turn) = (Arc::clone(chunks), Arc::clone(taken), Arc::clone(turn));
                // Under the lock of the pieces, so that none is taken between the two.
                let ours = {
                    let _pieces = chunks.lock().unwrap_or_else(PoisonError::into_inner);
                    if taken.load(Ordering::Acquire) {
                        return None;
                    }
                    turn.fetch_add(1, Ordering::AcqRel) + 1
                };
                let chunks = stream::poll_fn(move |cx| {
                    let mut pieces = chunks.lock().unwrap_or_else(PoisonError::into_inner);
                    if turn.load(Ordering::Acquire) != ours {
                        return Poll::Ready(Some(Err(Error::unavailable("the value is being handed in elsewhere"))));
                    }
                    let polled = pieces.poll_next_unpin(cx);
                    if polled.is_ready() {
                        taken.store(true, Ordering::Release);
                    }
                    polled
                });
                Value::Stream(ValueStream { length: *length, chunks: chunks.boxed() })
            }
        };
        Some(Change::Put { value, metadata: metadata.clone(), expires: *expires })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn put(value: Value) -> Again {
        Again::new(Change::Put { value, metadata: Some("{}".into()), expires: Expires::At(7) })
    }

    async fn value(again: &Again) -> Option<Bytes> {
        let Change::Put { value, metadata, expires } = again.change()? else { panic!("it is a put") };
        assert_eq!((metadata.as_deref(), expires), (Some(&b"{}"[..]), Expires::At(7)));
        Some(value.collect(100).await.expect("it is all there"))
    }

    #[tokio::test]
    async fn what_is_here_can_be_handed_in_again_and_again() {
        assert!(matches!(Again::new(Change::Delete).change(), Some(Change::Delete)));
        let parts: Arc<[Bytes]> = ["ab".into(), "c".into()].into();
        for again in [put(Value::Whole("abc".into())), put(Value::Parts(parts))] {
            for _ in 0..3 {
                assert_eq!(value(&again).await.as_deref(), Some(&b"abc"[..]));
            }
            assert!(!again.is_arriving());
        }
    }

    #[tokio::test]
    async fn what_arrives_can_be_handed_in_again_until_something_was_taken_of_it() {
        let (sender, mut arriving) = tokio::sync::mpsc::channel(4);
        let chunks = stream::poll_fn(move |cx| arriving.poll_recv(cx)).boxed();
        let again = put(Value::Stream(ValueStream { length: Some(3), chunks }));
        assert!(again.is_arriving());
        // Given up before anything came.
        assert!(value(&again).now_or_never().is_none());
        sender.send(Ok(Bytes::from_static(b"ab"))).await.expect("there is room");
        sender.send(Ok(Bytes::from_static(b"c"))).await.expect("there is room");
        drop(sender);
        assert_eq!(value(&again).await.as_deref(), Some(&b"abc"[..]));
        assert!(again.change().is_none());
    }

    #[tokio::test]
    async fn an_earlier_hand_in_takes_nothing_from_the_one_whose_turn_it_is() {
        let pieces: Vec<Result<Bytes>> = vec![Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        let again = put(Value::Stream(ValueStream { length: None, chunks: stream::iter(pieces).boxed() }));
        let Some(Change::Put { value: earlier, .. }) = again.change() else { panic!("nothing was taken of it") };
        let Some(Change::Put { value: later, .. }) = again.change() else { panic!("nothing was taken of it") };
        assert!(earlier.collect(100).await.is_err());
        assert_eq!(later.collect(100).await.unwrap(), "abc");
    }
}
