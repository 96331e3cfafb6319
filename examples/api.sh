#!/usr/bin/env bash
# The API by example, with nothing but curl: upload, ask, follow, play, download, make again, delete.
# `infinitetalk serve` runs in another window; the tests run these very lines.
set -euo pipefail
cd "$(dirname "$0")"
API=${API:-http://127.0.0.1:3000}
OUT=${OUT:-.}
MORE=(${MORE:-})   # further fields, such as: MORE="-F seconds=10"

id() { grep -o '"id":"[^"]*"' | head -1 | cut -d'"' -f4; }

# Ask for a video. The answer comes at once; the same Idempotency-Key never makes a second one.
VIDEO=$(curl -sS --fail-with-body "$API/v1/videos" -H "Idempotency-Key: $RANDOM-$RANDOM" \
  -F image=@astronaut.png -F audio=@en_allison.wav -F consent=true -F resolution=480p "${MORE[@]}" | id)

# Where it stands; `Prefer: wait=N` holds the answer until the video has ended, N seconds at most.
curl -sS --fail-with-body "$API/v1/videos/$VIDEO"; echo
# Everything that happens, as server-sent events; the stream ends with the video.
curl -sS --fail-with-body -N "$API/v1/videos/$VIDEO/events" | grep '^event:' | uniq -c
# Playable from the first chunk on, in any HLS player.
curl -sS --fail-with-body "$API/v1/videos/$VIDEO/stream.m3u8"
# The MP4, and a picture of its beginning.
curl -sS --fail-with-body -L "$API/v1/videos/$VIDEO/content" -o "$OUT/$VIDEO.mp4"
curl -sS --fail-with-body -L "$API/v1/videos/$VIDEO/content?variant=thumbnail" -o "$OUT/$VIDEO.jpg"

# Large files go up once, apart, and are named by id.
AUDIO=$(curl -sS --fail-with-body "$API/v1/files" -F file=@en_allison.wav | id)
IMAGE=$(curl -sS --fail-with-body "$API/v1/files" -F file=@astronaut.png | id)
SECOND=$(curl -sS --fail-with-body "$API/v1/videos" -H 'Content-Type: application/json' \
  -d '{"image": "'"$IMAGE"'", "audio": "'"$AUDIO"'", "consent": true, "seconds": 4, "job_class": "batch"}' | id)
curl -sS --fail-with-body -X POST "$API/v1/videos/$SECOND/cancel" > /dev/null

# Again, with a change; then all of it goes.
THIRD=$(curl -sS --fail-with-body "$API/v1/videos/$VIDEO/remix" -H 'Content-Type: application/json' -d '{"seed": 7}' | id)
curl -sS --fail-with-body "$API/v1/videos?limit=3"; echo
for GONE in "$VIDEO" "$SECOND" "$THIRD"; do curl -sS --fail-with-body -X DELETE "$API/v1/videos/$GONE"; echo; done
for GONE in "$AUDIO" "$IMAGE"; do curl -sS --fail-with-body -X DELETE "$API/v1/files/$GONE"; echo; done
