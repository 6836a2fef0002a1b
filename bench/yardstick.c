/* The least that any relay can do, to measure the others by: what is above its cost is theirs to save.
 *
 *   yardstick PORT REDISPORT [plain]
 *
 * One thread, one epoll, one connection to Redis that hears every channel. A message is framed once; what came in one
 * read from Redis goes to each client of a topic in one send (plain: one send for each message). No checks, no bounds,
 * no heartbeats: input is taken to be well formed, a request to come in one piece, and a send waits for a client that
 * is behind, so that nothing is ever lost and everybody waits with it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS (1 << 20)
#define HASH_SIZE (1 << 16)
#define READ_SIZE (1 << 18) /* room for one read from Redis, at least */

typedef struct Topic {
  struct Topic *chain;   /* the next of the same hash */
  struct Topic *touched; /* the next that has frames to send */
  int *fds, count, room; /* its clients */
  uint8_t *out;          /* frames to send */
  size_t size, capacity; /* of them */
  size_t length;
  char name[];
} Topic;

static struct {
  Topic *topic; /* NULL: it has not asked yet */
  int position; /* in the topic's fds */
} clients[MAX_FDS];

static Topic *topics[HASH_SIZE];
static Topic *first_touched;
static int epoll, plain;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* ---- topics ---- */

/* The topic of that name; where there is none, NULL or a new one. */
static Topic *find(const char *name, size_t length, int make) {
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < length; i++)
    hash = (hash ^ (uint8_t)name[i]) * 16777619u;
  Topic **at = &topics[hash % HASH_SIZE];
  while (*at && ((*at)->length != length || memcmp((*at)->name, name, length)))
    at = &(*at)->chain;
  if (!*at && make) {
    *at = calloc(1, sizeof(Topic) + length);
    (*at)->length = length;
    memcpy((*at)->name, name, length);
  }
  return *at;
}

static void join(int fd, Topic *topic) {
  if (topic->count == topic->room) {
    topic->room = topic->room ? 2 * topic->room : 1;
    topic->fds = realloc(topic->fds, topic->room * sizeof(int));
  }
  clients[fd].topic = topic;
  clients[fd].position = topic->count;
  topic->fds[topic->count++] = fd;
}

static void leave(int fd) {
  Topic *topic = clients[fd].topic;
  if (topic) {
    int last = topic->fds[--topic->count];
    topic->fds[clients[fd].position] = last;
    clients[last].position = clients[fd].position;
    clients[fd].topic = NULL;
  }
  close(fd);
}

static void deliver(void) {
  for (Topic *topic; (topic = first_touched); first_touched = topic->touched) {
    for (int i = 0; i < topic->count; i++)
      (void)!send(topic->fds[i], topic->out, topic->size, MSG_NOSIGNAL); /* one that is gone: its next read says so */
    topic->size = 0;
  }
}

/* ---- frames ---- */

static const char BEFORE[] = "{\"type\":\"status\",\"data\":\"", AFTER[] = "\"}";
static struct { char bytes[7]; uint8_t size; } spelled[256]; /* each byte as it stands in a JSON string */

static void spell(void) {
  for (int c = 0; c < 256; c++)
    spelled[c].size = sprintf(spelled[c].bytes, c < 32 ? "\\u%04x" : "%c", c);
  for (const char *pair = "\bb\tt\nn\ff\rr\"\"\\\\"; *pair; pair += 2)
    spelled[(uint8_t)*pair].size = sprintf(spelled[(uint8_t)*pair].bytes, "\\%c", pair[1]);
}

static uint8_t *append(uint8_t *to, const void *bytes, size_t size) {
  memcpy(to, bytes, size);
  return to + size;
}

static uint8_t *append_escaped(uint8_t *to, const uint8_t *text, size_t size) {
  for (size_t i = 0; i < size; to += spelled[text[i++]].size)
    memcpy(to, spelled[text[i]].bytes, sizeof spelled->bytes); /* always all: no branch */
  return to;
}

/* The header of a server's text frame (RFC 6455, section 5.2). */
static uint8_t *append_header(uint8_t *to, size_t payload) {
  int bytes = payload < 126 ? 0 : payload < 65536 ? 2 : 8;
  *to++ = 0x81;
  *to++ = bytes == 0 ? payload : bytes == 2 ? 126 : 127;
  for (int i = bytes - 1; i >= 0; i--)
    *to++ = (uint64_t)payload >> 8 * i;
  return to;
}

static void publish(const char *channel, size_t length, const char *text, size_t size) {
  Topic *topic = find(channel, length, 0);
  if (!topic || !topic->count)
    return;
  size_t escaped = 0;
  for (size_t i = 0; i < size; i++)
    escaped += spelled[(uint8_t)text[i]].size;
  size_t payload = sizeof BEFORE - 1 + escaped + sizeof AFTER - 1, most = payload + 20; /* header, and room to spell */
  if (topic->size + most > topic->capacity) {
    topic->capacity = 2 * (topic->size + most);
    topic->out = realloc(topic->out, topic->capacity);
  }
  if (!topic->size) {
    topic->touched = first_touched;
    first_touched = topic;
  }
  uint8_t *to = append_header(topic->out + topic->size, payload);
  to = append(to, BEFORE, sizeof BEFORE - 1);
  to = escaped == size ? append(to, text, size) : append_escaped(to, (const uint8_t *)text, size);
  topic->size = append(to, AFTER, sizeof AFTER - 1) - topic->out;
  if (plain)
    deliver();
}

/* ---- Redis ---- */

/* One reply: an array of bulk strings and integers. Where it ends, or NULL while it is not whole. */
static char *take_reply(char *at, char *end) {
  char *part[4], *line = memchr(at, '\n', end - at);
  size_t size[4];
  int parts = line ? atoi(at + 1) : 1;
  for (int i = 0; i < parts; i++) {
    if (!line || !(at = line + 1, line = memchr(at, '\n', end - at)))
      return NULL;
    if (*at == ':')
      continue;
    part[i] = line + 1;
    size[i] = atol(at + 1);
    if ((size_t)(end - part[i]) < size[i] + 2)
      return NULL;
    line = part[i] + size[i] + 1;
  }
  if (parts == 4) /* pmessage, pattern, channel, text */
    publish(part[2], size[2], part[3], size[3]);
  return line ? line + 1 : NULL;
}

static void read_redis(int fd) {
  static char *in;
  static size_t have, capacity;
  if (capacity - have < READ_SIZE)
    in = realloc(in, capacity = 2 * (have + READ_SIZE));
  ssize_t got = recv(fd, in + have, capacity - have, 0);
  if (got <= 0)
    fail("redis");
  have += got;
  char *at = in, *next;
  while (at < in + have && (next = take_reply(at, in + have)))
    at = next;
  have -= at - in;
  memmove(in, at, have);
  deliver();
}

/* ---- clients ---- */

static uint32_t rotate(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

/* One block of SHA-1 (RFC 3174, section 6.1). */
static void sha1_block(uint32_t sum[5], const uint8_t *block) {
  uint32_t w[80], a = sum[0], b = sum[1], c = sum[2], d = sum[3], e = sum[4];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 80; i++)
    w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
  for (int i = 0; i < 80; i++) {
    uint32_t mixed = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                     : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                     : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                              : (b ^ c ^ d) + 0xCA62C1D6;
    uint32_t next = rotate(a, 5) + mixed + e + w[i];
    e = d, d = c, c = rotate(b, 30), b = a, a = next;
  }
  sum[0] += a, sum[1] += b, sum[2] += c, sum[3] += d, sum[4] += e;
}

/* Sec-WebSocket-Accept: base64 of the SHA-1 of the key's 24 characters and a GUID (RFC 6455, section 4.2.2). */
static void accept_of(const char *key, char accept[29]) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint32_t sum[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
  uint8_t text[128] = {[60] = 0x80, [126] = 60 * 8 >> 8, [127] = 60 * 8 & 255}; /* with SHA-1's padding */
  append(append(text, key, 24), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
  sha1_block(sum, text);
  sha1_block(sum, text + 64);
  for (int i = 0; i < 27; i++) { /* 160 bits, six to a digit */
    int word = 6 * i / 32, shift = 6 * i % 32;
    uint64_t two = (uint64_t)sum[word] << 32 | (word < 4 ? sum[word + 1] : 0);
    accept[i] = digits[two << shift >> 58];
  }
  memcpy(accept + 27, "=", 2);
}

static void answer(int fd, char *request) {
  char *path = strchr(request, '/'), *end = path ? strchr(path, ' ') : NULL;
  char *key = strcasestr(request, "\r\nsec-websocket-key: "), accept[29], head[200];
  if (!end || !key)
    return leave(fd);
  accept_of(key + 21, accept);
  const char *form = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n\r\n";
  int size = sprintf(head, form, accept);
  join(fd, find(path + 1, end - path - 1, 1));
  (void)!send(fd, head, size, MSG_NOSIGNAL);
}

static void read_client(int fd) {
  char in[4096];
  ssize_t got = recv(fd, in, sizeof in - 1, MSG_DONTWAIT);
  if (got <= 0 || (uint8_t)in[0] == 0x88) { /* gone, or saying goodbye */
    leave(fd);
  } else if (!clients[fd].topic) { /* else a frame, at which nobody looks */
    in[got] = 0;
    answer(fd, in);
  }
}

static void watch(int fd) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  if (fd < 0 || fd >= MAX_FDS || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
    fail("a socket");
}

static void welcome(int listener) {
  int fd = accept4(listener, NULL, NULL, 0), on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  watch(fd);
}

static struct sockaddr_in loopback(const char *port) {
  return (struct sockaddr_in){AF_INET, htons(atoi(port)), {htonl(INADDR_LOOPBACK)}, {0}};
}

int main(int argc, char **argv) {
  if (argc < 3)
    return fprintf(stderr, "yardstick PORT REDISPORT [plain]\n"), 2;
  plain = argc > 3;
  spell();
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  struct sockaddr_in here = loopback(argv[1]), there = loopback(argv[2]);
  int listener = socket(AF_INET, SOCK_STREAM, 0), redis = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  epoll = epoll_create1(0);
  if (connect(redis, (void *)&there, sizeof there) || write(redis, "PSUBSCRIBE *\r\n", 14) != 14)
    fail("redis");
  if (bind(listener, (void *)&here, sizeof here) || listen(listener, 4096))
    fail("listen");
  watch(listener);
  watch(redis);
  for (;;) {
    struct epoll_event events[1024];
    int count = epoll_wait(epoll, events, 1024, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      fd == listener ? welcome(fd) : fd == redis ? read_redis(fd) : read_client(fd);
    }
  }
}
