//! `/users/me/export`: everything stored about a user, in one document that is streamed.

use std::{
    error::Error,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE},
    response::IntoResponse,
};
use futures_core::Stream;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tracing::Instrument;
use utoipa::ToSchema;

use super::{App, Problem, UserBody, history::OwnChange, json::MEDIA_TYPE, sessions::SessionBody};
use crate::{
    account::{PersonalData, Stored},
    token::Claims,
};

/// The user, including what others do not see.
#[derive(Serialize, ToSchema)]
struct ExportedUser {
    #[serde(flatten)]
    user: UserBody,
    /// The user's id in the system that they come from.
    #[schema(example = "17")]
    external_id: Option<String>,
    /// When the user was last changed.
    #[schema(example = "2026-01-02T03:04:05.678901Z")]
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

/// A session, which may be over.
#[derive(Serialize, ToSchema)]
struct ExportedSession {
    #[serde(flatten)]
    session: SessionBody,
    /// When it was ended, if that was before its time.
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    /// Why it was ended.
    #[schema(example = "logout")]
    end_reason: Option<String>,
}

/// Everything stored about a user.
#[derive(ToSchema)]
#[schema(as = PersonalData)]
#[expect(dead_code, reason = "describes what `write` writes piece by piece")]
struct Document {
    /// When the export was requested.
    #[schema(value_type = String, format = DateTime, example = "2026-01-02T03:04:05.678901Z")]
    exported_at: OffsetDateTime,
    /// The account.
    user: ExportedUser,
    /// Every session that is still stored, oldest first.
    sessions: Vec<ExportedSession>,
    /// What happened to the account, newest first.
    history: Vec<OwnChange>,
}

/// Export everything stored about the user: the account, its sessions and its history, but no hash and no token.
///
/// The document is read piece by piece while it is sent, and each piece shows the data as it is then. If something
/// fails on the way, the connection is closed before the end of the document.
#[utoipa::path(
    get, path = "/users/me/export", tag = "users", security(("bearer" = [])),
    responses(
        (status = 200, description = "One document, to be saved as a file.", body = Document, headers(
            ("Content-Disposition" = String, description = "`attachment`, with a file name."),
            ("Cache-Control" = String, description = "`no-store`."),
        )),
        (status = 429, description = "`export_under_way`: the user already has an export under way, or the replica has as many as it allows at once. Try again after `Retry-After`."),
    ),
)]
pub(super) async fn export(
    State(app): State<App>,
    Extension(claims): Extension<Arc<Claims>>,
) -> Result<impl IntoResponse, Problem> {
    let data = app.accounts.personal_data(claims.user_id).await?;
    let disposition = format!(
        "attachment; filename=\"gatepass-export-{}-{}.json\"",
        data.user.username,
        app.clock.now().date()
    );
    // One piece is being sent, one is ready, one is being made.
    let (send, pieces) = mpsc::channel(1);
    tokio::spawn(async move { write(&app, data, &claims, send).await }.in_current_span());
    let headers = [
        (CONTENT_TYPE, MEDIA_TYPE.to_owned()),
        (CONTENT_DISPOSITION, disposition),
        (CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(Pieces(pieces))))
}

/// How long a piece may wait to be taken before so slow a reader loses its place to others. Linux takes the next piece
/// only once a third of the connection's send buffer has drained, which may be more than a megabyte: with a steady
/// reader at 20 kB/s, it takes nothing for a minute.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

type Piece = Result<Vec<u8>, io::Error>;

/// The pieces written so far, as a stream for the body.
struct Pieces(mpsc::Receiver<Piece>);

impl Stream for Pieces {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(context)
    }
}

/// Writes the document until it is complete or its reader is gone.
async fn write(app: &App, data: PersonalData, claims: &Claims, out: mpsc::Sender<Piece>) {
    let last = match pieces(app, data, claims, &out).await {
        Ok(last) => Ok(last),
        // The reader is gone.
        Err(_) if out.is_closed() => return,
        Err(error) => {
            tracing::warn!(error = &*error as &(dyn Error + 'static), "an export has stopped half way");
            Err(io::Error::other("the export has stopped"))
        }
    };
    let _ = out.send(last).await;
}

/// Sends a piece, once there is room for it.
async fn send(out: &mpsc::Sender<Piece>, piece: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> {
    out.send_timeout(Ok(mem::take(piece)), PATIENCE).await.map_err(|error| match error {
        SendTimeoutError::Timeout(_) => "its reader takes nothing".into(),
        SendTimeoutError::Closed(_) => "it has no reader".into(),
    })
}

/// Sends every piece except the last, which it returns: when that is sent, the user may already export again.
async fn pieces(
    app: &App,
    mut data: PersonalData,
    claims: &Claims,
    out: &mpsc::Sender<Piece>,
) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let user = ExportedUser {
        user: data.user.clone().into(),
        external_id: data.particulars.external_id.take(),
        updated_at: data.particulars.updated_at,
    };
    // A slow reader learns nothing from after the end of the session.
    let not_revoked = || app.feed.revocations().check(claims, app.clock.elapsed());
    let now = app.clock.now().format(&Rfc3339)?;
    let mut piece = format!("{{\"exported_at\":\"{now}\",\"user\":").into_bytes();
    serde_json::to_writer(&mut piece, &user)?;
    piece.extend(b",\"sessions\":[");
    let mut is_first = true;
    loop {
        not_revoked()?;
        let page = data.sessions().await?;
        if page.is_empty() {
            break;
        }
        let session = |Stored { overview, ended_at, end_reason }| ExportedSession {
            session: SessionBody::new(overview, claims.session_id),
            ended_at,
            end_reason,
        };
        append(&mut piece, page.into_iter().map(session), &mut is_first)?;
        send(out, &mut piece).await?;
    }
    piece.extend(b"],\"history\":[");
    is_first = true;
    loop {
        not_revoked()?;
        let page = data.changes().await?;
        if page.is_empty() {
            break;
        }
        let changes = page.into_iter().map(|change| OwnChange::new(change, data.user.id));
        append(&mut piece, changes, &mut is_first)?;
        send(out, &mut piece).await?;
    }
    piece.extend(b"]}\n");
    Ok(piece)
}

/// Adds the elements of a list.
fn append(
    out: &mut Vec<u8>,
    elements: impl Iterator<Item = impl Serialize>,
    is_first: &mut bool,
) -> Result<(), serde_json::Error> {
    for element in elements {
        if !mem::take(is_first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &element)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Sends three pieces to a reader that takes one every `pause`; how many it took, and how the sending ended.
    async fn read_slowly(pause: Duration) -> (usize, Result<(), String>) {
        let (out, mut pieces) = mpsc::channel(1);
        let sent = async {
            for _ in 0..3 {
                send(&out, &mut vec![0; 30_000]).await.map_err(|error| error.to_string())?;
            }
            drop(out);
            Ok(())
        };
        let taken = async {
            let mut taken = 0;
            loop {
                sleep(pause).await;
                if pieces.recv().await.is_none() {
                    return taken;
                }
                taken += 1;
            }
        };
        let (sent, taken) = tokio::join!(sent, taken);
        (taken, sent)
    }

    /// A third of the 4 MB that Linux buffers at most for a connection, at 5 kB/s.
    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_all_of_it() {
        assert_eq!(read_slowly(Duration::from_secs(280)).await, (3, Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_is_dropped_after_a_while() {
        let (out, _pieces) = mpsc::channel(1);
        send(&out, &mut vec![0; 30_000]).await.unwrap();
        let begun = Instant::now();
        let ended = send(&out, &mut vec![0; 30_000]).await.unwrap_err();
        assert_eq!((ended.to_string().as_str(), begun.elapsed()), ("its reader takes nothing", PATIENCE));
    }
}
