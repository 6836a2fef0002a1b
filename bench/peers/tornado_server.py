"""tornado_server.py PORT REDIS_HOST REDIS_PORT: a Tornado handler with a Redis connection for each browser.

So the relay's predecessor was built. This one is kinder to the machine: it waits for messages where that one asked a
thousand times a second, and it subscribes before it answers the handshake, so that nothing is missed.
"""

import asyncio
import sys

import redis.asyncio
from status_feed import frame_text
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler

PORT, REDIS_HOST, REDIS_PORT = sys.argv[1:]


class Status(WebSocketHandler):
    async def get(self, channel):
        self.redis = redis.asyncio.Redis(host=REDIS_HOST, port=int(REDIS_PORT))
        self.pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        await self.pubsub.subscribe(channel)
        await super().get(channel)

    def open(self, channel):
        self.forwarding = asyncio.create_task(self.forward())

    async def forward(self):
        try:
            async for message in self.pubsub.listen():
                if message["type"] == "message":
                    await self.write_message(frame_text(message["data"]))
        except WebSocketClosedError:
            pass  # between the message and its frame
        finally:
            await self.pubsub.aclose()
            await self.redis.aclose()

    def on_message(self, message):
        pass

    def on_close(self):
        self.forwarding.cancel()

    def check_origin(self, origin):
        return True


async def main():
    Application([(r".*/([^/]+)", Status)], log_function=lambda handler: None).listen(int(PORT), "127.0.0.1")
    await asyncio.Event().wait()


asyncio.run(main())
