/*
 * zhx.c: the C client of zhx; zhx.h says how to use it, ipc/PROTOCOL.md what it speaks.
 *
 * Written so that one can follow where every byte is: all memory is in struct zhx and the four buffers behind it.
 *   in    bytes of frames as they arrive; parse() gives away whole ones from the front
 *   out   bytes of frames that the socket has not taken; flush_out() takes them from the front
 *   keep  whole frames of level handled that have no answer yet, oldest first; they are copied to out on each connection
 * A failed write only notes `broken`: the connection is given up in advance(), since what is still to read may say why
 * (another connection has the name), and since no handler may run inside of a handler.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* struct ucred */
#endif
#include "zhx.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { T_HELLO = 1, T_WELCOME, T_REGISTER, T_MESSAGE, T_REQUEST, T_REPLY, T_CANCEL, T_ACK, T_ERROR, T_PUBLISH, T_SUBSCRIBE,
       T_UNSUBSCRIBE, T_GAP, T_WATCH, T_UNWATCH, T_STATE, T_FEED };
enum { F_FAILED = 4, F_TAKES_FDS = 32 };
enum { FEED_ARM, FEED_ALIVE, FEED_CHECKPOINT };

enum {
    HEADER = 32,
    FRAME_MAX = 16 << 20,     /* a size beyond is no frame */
    HEADS = HEADER + 2 * 255, /* a frame without its body and ext */
    RESERVE = 8 * 1024,       /* of out, for acknowledgements, feeds and cancels, so that data cannot shut them out */
    PARSE_ROOM = 64,          /* of out, before a frame is handled that may want an acknowledgement */
    SETUP_ROOM = 32 * 1024,   /* of out, more than HELLO with its cookie, all names, patterns, watches and arms need: 20 KiB */
    COOKIE_MAX = 4096,
    IN_FDS = 4 * ZHX_FDS_MAX, /* descriptors that came before their frame was whole */
    OUT_FDS = 8,              /* frames with descriptors in out */
    CONNECT_MS = 5000,        /* for connect, and for WELCOME */
    BACKOFF_MIN_MS = 10, BACKOFF_MAX_MS = 1000,
    STEADY_MS = 1000          /* a connection that lived as long starts the backoff anew */
};

enum { DOWN, CONNECTING, HELLO, UP, DEAD, INERT }; /* DEAD: taken. INERT: optional and no zhxd */
enum { FREE, SEND, REQUEST, SETUP };               /* what a pending answer is of; SETUP: a name, after a connect */

struct pending { uint64_t id; int64_t deadline; zhx_handler fn; void *arg; int kind; char to[ZHX_TOPIC_MAX + 1]; };
struct kept { uint64_t id; size_t off, len; int state; }; /* state: one of the next line */
enum { FRESH, SENT, AGAIN };                              /* never sent; sent on this connection; on an earlier one */
struct pattern { char s[ZHX_TOPIC_MAX + 1]; uint8_t policy; uint32_t waiting; };
struct armed { char name[ZHX_NAME_MAX + 1]; uint8_t ever, here; }; /* told to some zhxd; told on this connection */
struct seen { uint64_t key, id; };                        /* a sender, and the highest id that its messages to one name had */
struct outfds { uint64_t at; int n, fd[ZHX_FDS_MAX]; };   /* at: where its frame begins, counted from the connection's first byte */

struct zhx {
    struct sockaddr_storage addr;
    socklen_t addr_len;
    char cookie[256]; /* path */
    unsigned flags;
    zhx_handler handler;
    void *arg;

    int fd, state;
    int broken;   /* nothing more is written; read what is there, then give up */
    int told_up;  /* ZHX_EV_UP came and ZHX_EV_DOWN not yet */
    int ever;     /* there was a connection once */
    int setups;   /* names whose answer is awaited */
    int peer_fds; /* WELCOME had TAKES_FDS */
    int busy;     /* in a handler */
    int paused;   /* by zhx_pause */
    int blocked;  /* and a message is next in `in`: nothing more is read */
    int told;     /* events of this zhx_process */
    int64_t next, since; /* when to try or give up; when the connection was welcomed */
    int backoff;
    uint64_t session, last_id, random, incarnation;
    size_t max_body, peer_body;

    char names[ZHX_NAMES][ZHX_NAME_MAX + 1]; /* the first is the handle's, also if it is "" */
    int n_names;
    struct pattern patterns[ZHX_PATTERNS];
    int n_patterns;
    char watches[ZHX_WATCHES][ZHX_NAME_MAX + 1];
    int n_watches;
    struct armed armed[ZHX_NAMES];
    int n_armed;
    struct pending pending[ZHX_WAITING];
    struct kept kept[ZHX_KEPT];
    int n_kept;
    struct seen seen[ZHX_SENDERS]; /* latest first */
    int n_seen;
    struct seen later[ZHX_LATERS]; /* session and id of what a handler has put off */
    int n_later;

    uint8_t *in, *out, *keep;
    size_t in_len, in_cap, out_pos, out_len, out_cap, keep_len, keep_cap;
    uint64_t skip;     /* bytes of a frame too big that are still to come */
    uint64_t out_base; /* the bytes of this connection before out[0] */
    int in_fd[IN_FDS], n_in_fd;
    struct outfds out_fds[OUT_FDS];
    int n_out_fds;
    char ev_to[256], ev_from[256];
};

struct frame { uint8_t type, flags, code, fds; uint64_t session, id; uint32_t time; const char *to, *from; const void *body; size_t len; };

/* ---- small things */

static void put(uint8_t *p, uint64_t v, int n) { for (; n > 0; n--, v >>= 8) *p++ = (uint8_t)v; }
static uint64_t get(const uint8_t *p, int n)
{
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static uint64_t next_random(zhx *h) /* xorshift64: for jitter, not for secrets */
{
    h->random ^= h->random << 13;
    h->random ^= h->random >> 7;
    return h->random ^= h->random << 17;
}

static int valid(const char *s, size_t max, const char *more)
{
    size_t n = s ? strlen(s) : 0;
    if (n == 0 || n > max) return 0;
    for (; *s; s++)
        if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || *s == '_' || *s == '-' || strchr(more, *s)))
            return 0;
    return 1;
}
static int valid_name(const char *s) { return valid(s, ZHX_NAME_MAX, "") && *s != '-'; }

static void close_all(int *fd, int n) { while (n-- > 0) if (fd[n] >= 0) close(fd[n]); }

const char *zhx_word(int error)
{
    static const char *const words[] = {"ok", "noname", "restarting", "stopped", "failed", "full", "denied", "toobig", "expired", "stuck",
        "gone", "nofds", "bad", "taken", "unanswered", "closed", "timeout", "refused", "busy", "nomem"};
    return error > 0 || error < ZHX_NOMEM ? "unknown" : words[-error];
}

static const char *own(const zhx *h, const char *from) { return from ? from : h->names[0]; }
static int connected(const zhx *h) { return (h->state == HELLO || h->state == UP) && !h->broken; }

/* What a call returns that needs a connection where there is none. */
static int unconnected(const zhx *h)
{
    if (h->state == DEAD) return ZHX_TAKEN;
    return (h->flags & ZHX_OPTIONAL) && !h->ever ? ZHX_OK : ZHX_CLOSED;
}

/* ---- events */

static int emit_to(zhx *h, zhx_handler fn, void *arg, struct zhx_event *e)
{
    int r = ZHX_DONE;
    static const unsigned char none[1] = {0};
    if (!e->to) e->to = "";
    if (!e->from) e->from = "";
    if (!e->body) e->body = none;
    h->told++;
    if (fn) {
        h->busy = 1;
        r = fn(h, e, arg);
        h->busy = 0;
    }
    close_all(e->fd, e->nfds);
    return r;
}
static int emit(zhx *h, struct zhx_event *e) { return emit_to(h, h->handler, h->arg, e); }

static void emit_simple(zhx *h, int type, uint64_t id, int code, const char *to)
{
    struct zhx_event e;
    memset(&e, 0, sizeof e);
    e.type = type, e.id = id, e.code = code, e.to = to;
    e.session = id ? h->session : 0;
    emit(h, &e);
}

/* settle ends a pending answer. The slot is free before the handler runs, so that it may ask again. */
static void settle(zhx *h, struct pending *p, struct zhx_event *e)
{
    struct pending was = *p;
    p->kind = FREE;
    if (!e->to || !*e->to) e->to = was.to;
    if (was.kind == SETUP) {
        h->setups--;
        e->id = 0;
        if (e->type == ZHX_EV_ERROR && e->code != ZHX_CLOSED) emit(h, e);
        else close_all(e->fd, e->nfds);
    } else if (was.kind == REQUEST && was.fn) {
        emit_to(h, was.fn, was.arg, e);
    } else {
        emit(h, e);
    }
}
static void settle_error(zhx *h, struct pending *p, int code)
{
    struct zhx_event e;
    memset(&e, 0, sizeof e);
    e.type = ZHX_EV_ERROR, e.code = code, e.session = h->session, e.id = p->id;
    settle(h, p, &e);
}

static struct pending *find_pending(zhx *h, uint64_t id)
{
    int i;
    for (i = 0; i < ZHX_WAITING; i++)
        if (h->pending[i].kind != FREE && h->pending[i].id == id) return &h->pending[i];
    return NULL;
}
static struct pending *new_pending(zhx *h)
{
    int i;
    for (i = 0; i < ZHX_WAITING; i++)
        if (h->pending[i].kind == FREE) return &h->pending[i];
    return NULL;
}
static void set_pending(struct pending *p, int kind, uint64_t id, const char *to)
{
    memset(p, 0, sizeof *p);
    p->kind = kind, p->id = id;
    strcpy(p->to, to); /* a valid name or topic: it fits */
}

/* ---- writing */

static size_t frame_size(const struct frame *f) { return HEADER + strlen(f->to) + strlen(f->from) + f->len; }

static void write_frame(uint8_t *p, const struct frame *f)
{
    size_t to = strlen(f->to), from = strlen(f->from);
    put(p, HEADER + to + from + f->len, 4);
    p[4] = f->type, p[5] = f->flags, p[6] = f->code, p[7] = f->fds;
    put(p + 8, f->session, 8);
    put(p + 16, f->id, 8);
    put(p + 24, f->time, 4);
    p[28] = (uint8_t)to, p[29] = (uint8_t)from, p[30] = p[31] = 0;
    memcpy(p + HEADER, f->to, to);
    memcpy(p + HEADER + to, f->from, from);
    if (f->len) memcpy(p + HEADER + to + from, f->body, f->len);
}

static size_t out_room(const zhx *h) { return h->out_cap - (h->out_len - h->out_pos); }

/* out_place gives room for n bytes at the end of out; reserve bytes must be left after them. NULL: there is none. */
static uint8_t *out_place(zhx *h, size_t n, size_t reserve)
{
    if (out_room(h) < n + reserve) return NULL;
    if (h->out_cap - h->out_len < n) {
        memmove(h->out, h->out + h->out_pos, h->out_len - h->out_pos);
        h->out_base += h->out_pos;
        h->out_len -= h->out_pos;
        h->out_pos = 0;
    }
    h->out_len += n;
    return h->out + h->out_len - n;
}

static int queue(zhx *h, const struct frame *f, size_t reserve)
{
    uint8_t *p = out_place(h, frame_size(f), reserve);
    if (!p) return ZHX_FULL;
    write_frame(p, f);
    return ZHX_OK;
}

/* flush_out writes what the socket takes. The bytes between two frames with descriptors go by a call of their own. */
static void flush_out(zhx *h)
{
    while (connected(h) && h->out_pos < h->out_len) {
        union { struct cmsghdr align; char b[CMSG_SPACE(sizeof(int) * ZHX_FDS_MAX)]; } control;
        struct iovec iov;
        struct msghdr msg;
        struct outfds *o = h->out_fds;
        int with = h->n_out_fds > 0 && o->at == h->out_base + h->out_pos;
        size_t end = h->out_len;
        ssize_t n;
        memset(&msg, 0, sizeof msg);
        if (h->n_out_fds > with) end = (size_t)(o[with].at - h->out_base);
        iov.iov_base = h->out + h->out_pos, iov.iov_len = end - h->out_pos;
        msg.msg_iov = &iov, msg.msg_iovlen = 1;
        if (with) {
            struct cmsghdr *c;
            memset(&control, 0, sizeof control);
            msg.msg_control = control.b, msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)o->n);
            c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)o->n);
            memcpy(CMSG_DATA(c), o->fd, sizeof(int) * (size_t)o->n);
        }
        n = sendmsg(h->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) h->broken = 1;
            if (errno != EINTR) return;
            continue;
        }
        if (with && n > 0) {
            close_all(o->fd, o->n);
            memmove(o, o + 1, sizeof *o * (size_t)--h->n_out_fds);
        }
        h->out_pos += (size_t)n;
    }
    if (h->out_pos == h->out_len) h->out_base += h->out_pos, h->out_pos = h->out_len = 0;
}

/* send_kept copies to out what is kept and was not sent on this connection, in order, as far as there is room. Of what an
 * earlier connection may have carried, the oldest to each receiver is marked: only that one can have been given to it. */
static void send_kept(zhx *h)
{
    int i, j;
    for (i = 0; i < h->n_kept && connected(h); i++) {
        struct kept *k = &h->kept[i];
        const uint8_t *f = h->keep + k->off;
        uint8_t *p;
        if (k->state == SENT) continue;
        p = out_place(h, k->len, RESERVE);
        if (!p) return;
        memcpy(p, f, k->len);
        if (k->state == AGAIN) {
            for (j = 0; j < i; j++) {
                const uint8_t *g = h->keep + h->kept[j].off;
                if (g[28] == f[28] && memcmp(g + HEADER, f + HEADER, f[28]) == 0) break;
            }
            if (j == i) p[5] |= ZHX_REPEAT;
        }
        k->state = SENT;
    }
}

/* unkeep forgets the kept message i, that has its answer. */
static void unkeep(zhx *h, int i)
{
    size_t off = h->kept[i].off, len = h->kept[i].len;
    memmove(h->keep + off, h->keep + off + len, h->keep_len - off - len);
    h->keep_len -= len;
    memmove(&h->kept[i], &h->kept[i + 1], sizeof h->kept[0] * (size_t)(--h->n_kept - i));
    for (; i < h->n_kept; i++) h->kept[i].off -= len;
}

/* post sends a frame of the handle's own with the next id, at once as far as the socket takes it. */
static int post(zhx *h, struct frame *f, size_t reserve)
{
    int r;
    if (!connected(h)) return unconnected(h);
    f->session = h->session;
    f->id = h->last_id + 1;
    r = queue(h, f, reserve);
    if (r == ZHX_OK) {
        h->last_id++;
        if (!h->busy || out_room(h) < h->out_cap / 2) flush_out(h); /* in a handler many small ones go by one call */
    }
    return r;
}

static struct frame plain(int type, const char *to, const char *from)
{
    struct frame f;
    memset(&f, 0, sizeof f);
    f.type = (uint8_t)type, f.to = to, f.from = from;
    return f;
}

static void acknowledge(zhx *h, uint64_t session, uint64_t id)
{
    struct frame f = plain(T_ACK, "", "");
    f.code = ZHX_HANDLED, f.session = session, f.id = id;
    if (connected(h) && queue(h, &f, 0) != ZHX_OK) h->broken = 1; /* no room for 32 bytes: zhxd reads nothing. It asks again later */
}

/* ---- connecting */

static void lose(zhx *h, int code)
{
    int i, wait, was_up = h->told_up;
    if (h->fd >= 0) close(h->fd);
    h->fd = -1;
    close_all(h->in_fd, h->n_in_fd);
    for (i = 0; i < h->n_out_fds; i++) close_all(h->out_fds[i].fd, h->out_fds[i].n);
    if (h->state == UP && now_ms() - h->since >= STEADY_MS) h->backoff = 0;
    h->backoff = h->backoff == 0 ? BACKOFF_MIN_MS : h->backoff * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : h->backoff * 2;
    wait = h->backoff / 2 + (int)(next_random(h) % (uint64_t)(h->backoff / 2 + 1));
    h->next = now_ms() + wait;
    h->state = code == ZHX_TAKEN ? DEAD : DOWN;
    h->broken = h->blocked = h->told_up = h->peer_fds = h->n_in_fd = h->n_out_fds = 0;
    h->in_len = h->out_pos = h->out_len = 0;
    h->out_base = h->skip = 0;
    for (i = 0; i < h->n_armed; i++) h->armed[i].here = 0;
    for (i = 0; i < h->n_kept; i++)
        if (h->kept[i].state == SENT) h->kept[i].state = AGAIN;
    for (i = 0; i < ZHX_WAITING; i++)
        if (h->pending[i].kind != FREE) settle_error(h, &h->pending[i], code);
    h->setups = 0;
    if (h->state == DEAD)
        while (h->n_kept > 0) {
            uint64_t id = h->kept[0].id;
            unkeep(h, 0);
            emit_simple(h, ZHX_EV_ERROR, id, ZHX_TAKEN, "");
        }
    else if (was_up)
        emit_simple(h, ZHX_EV_DOWN, 0, 0, "");
}

/* say_hello queues all that a new connection begins with. out is empty and was sized for it. */
static void say_hello(zhx *h)
{
    static const uint8_t preamble[8] = {0xA7, 'Z', 'H', 'X', '\r', '\n', 2, 0};
    uint8_t cookie[COOKIE_MAX];
    struct frame f = plain(T_HELLO, "", "");
    uint8_t *p;
    int i, fd;
    h->state = HELLO;
    h->ever = 1;
    h->next = now_ms() + CONNECT_MS;
    if (!(p = out_place(h, sizeof preamble, 0))) return;
    memcpy(p, preamble, sizeof preamble);
    if (h->addr.ss_family == AF_UNIX) {
        f.flags = F_TAKES_FDS;
    } else if (h->cookie[0] && (fd = open(h->cookie, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) >= 0) {
        ssize_t n = read(fd, cookie, sizeof cookie);
        if (n > 0) f.body = cookie, f.len = (size_t)n;
        close(fd);
    }
    post(h, &f, 0);
    for (i = 0; i < h->n_names && connected(h); i++) {
        struct pending *a = new_pending(h);
        if (!h->names[i][0] || !a) continue;
        f = plain(T_REGISTER, "", h->names[i]);
        if (post(h, &f, 0) == ZHX_OK) set_pending(a, SETUP, h->last_id, h->names[i]), h->setups++;
    }
    for (i = 0; i < h->n_patterns; i++) {
        f = plain(T_SUBSCRIBE, h->patterns[i].s, h->names[0]);
        f.code = h->patterns[i].policy, f.time = h->patterns[i].waiting;
        post(h, &f, 0);
    }
    for (i = 0; i < h->n_watches; i++) {
        f = plain(T_WATCH, h->watches[i], "");
        post(h, &f, 0);
    }
    send_kept(h);
    flush_out(h);
}

static void begin_connect(zhx *h)
{
    int one = 1;
    h->state = CONNECTING;
    h->next = now_ms() + CONNECT_MS;
    h->fd = socket(h->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (h->fd < 0) {
        lose(h, ZHX_CLOSED);
        return;
    }
    if (h->addr.ss_family != AF_UNIX) setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(h->fd, (const struct sockaddr *)&h->addr, h->addr_len) == 0) say_hello(h);
    else if (errno != EINPROGRESS && errno != EINTR) lose(h, ZHX_CLOSED); /* EAGAIN of a Unix socket too: its queue is full */
}

static void check_connect(zhx *h)
{
    struct pollfd p;
    int error = 0;
    socklen_t n = sizeof error;
    p.fd = h->fd, p.events = POLLOUT, p.revents = 0;
    if (poll(&p, 1, 0) <= 0) return;
    if (getsockopt(h->fd, SOL_SOCKET, SO_ERROR, &error, &n) != 0 || error != 0) lose(h, ZHX_CLOSED);
    else say_hello(h);
}

/* tell_arms tells zhxd of armed watchdogs: a new zhxd of all, the one that was known of what was armed without a connection. */
static void tell_arms(zhx *h, int new_zhxd)
{
    int i;
    for (i = 0; i < h->n_armed; i++) {
        struct armed *a = &h->armed[i];
        struct frame f = plain(T_FEED, "", a->name);
        f.code = FEED_ARM;
        if (!a->here && (new_zhxd || !a->ever) && post(h, &f, 0) == ZHX_OK) a->ever = a->here = 1;
    }
}

/* ---- reading */

/* key is what a sender's messages to one name are remembered by: ids grow for each receiver, not for all names of a connection. */
static uint64_t key(uint64_t session, const char *to)
{
    uint64_t k = session ^ UINT64_C(0xcbf29ce484222325);
    for (; *to; to++) k = (k ^ (uint8_t)*to) * UINT64_C(0x100000001b3);
    return k;
}

static int find_later(const zhx *h, uint64_t session, uint64_t id)
{
    int i;
    for (i = 0; i < h->n_later; i++)
        if (h->later[i].key == session && h->later[i].id == id) return i;
    return -1;
}

static void on_handled(zhx *h, struct zhx_event *e)
{
    uint64_t session = e->session;
    struct seen s;
    int i;
    s.key = key(e->session, e->to), s.id = e->id;
    for (i = 0; i < h->n_seen && h->seen[i].key != s.key; i++) {}
    if (i < h->n_seen && e->id <= h->seen[i].id) { /* a duplicate: its acknowledgement was lost, or is not there yet */
        close_all(e->fd, e->nfds);
        if (find_later(h, e->session, e->id) < 0) acknowledge(h, e->session, e->id);
        return;
    }
    if (i < h->n_seen) e->flags &= ~(unsigned)ZHX_REPEAT; /* this one was here all the time: it is new to it */
    else if (h->n_seen < ZHX_SENDERS) h->n_seen++;
    else i--; /* in place of who was heard of longest ago */
    memmove(h->seen + 1, h->seen, sizeof s * (size_t)i);
    h->seen[0] = s;
    if (emit(h, e) != ZHX_LATER) {
        acknowledge(h, session, s.id);
    } else if (h->n_later == ZHX_LATERS) {
        h->broken = 1; /* zhx gives one at a time: this is none */
    } else {
        h->later[h->n_later].key = session;
        h->later[h->n_later++].id = s.id;
    }
}

/* on_answer is ACK, ERROR or REPLY to what this handle sent. */
static void on_answer(zhx *h, struct zhx_event *e)
{
    struct pending *p = find_pending(h, e->id);
    int i;
    if (e->session != h->session || (e->type == ZHX_EV_REPLY && (!p || p->kind != REQUEST)) || (p && p->kind == REQUEST && e->type == ZHX_EV_ACK)) {
        close_all(e->fd, e->nfds);
        return;
    }
    if (p) {
        settle(h, p, e);
        return;
    }
    for (i = 0; i < h->n_kept; i++)
        if (h->kept[i].id == e->id) {
            unkeep(h, i);
            emit(h, e);
            return;
        }
    if (e->type == ZHX_EV_ERROR) emit(h, e);
    else close_all(e->fd, e->nfds); /* of an unsubscribe, or what was given up */
}

static int error_of(int code) { return code >= 1 && code <= 14 ? -code : ZHX_BAD; }

static void on_frame(zhx *h, const uint8_t *p, struct zhx_event *e)
{
    int type = p[4], code = p[6];
    if (h->state == HELLO && type != T_WELCOME && type != T_ERROR) {
        h->broken = 1;
        type = 0;
    }
    switch (type) {
    case T_WELCOME:
        if (h->state != HELLO) break;
        if (code != 2) { /* no such version */
            h->broken = 1;
            break;
        }
        h->state = UP;
        h->since = now_ms();
        h->peer_fds = (p[5] & F_TAKES_FDS) && h->addr.ss_family == AF_UNIX;
        h->peer_body = e->id > 0 && e->id < h->max_body ? (size_t)e->id : h->max_body;
        tell_arms(h, e->session != h->incarnation);
        h->incarnation = e->session;
        break;
    case T_MESSAGE:
        e->type = ZHX_EV_MESSAGE;
        if (code == ZHX_HANDLED) on_handled(h, e);
        else emit(h, e);
        return;
    case T_REQUEST: e->type = ZHX_EV_REQUEST; emit(h, e); return;
    case T_CANCEL: e->type = ZHX_EV_CANCEL; emit(h, e); return;
    case T_PUBLISH: e->type = ZHX_EV_PUBLICATION; emit(h, e); return;
    case T_GAP: e->type = ZHX_EV_GAP; emit(h, e); return;
    case T_STATE: e->type = ZHX_EV_STATE; emit(h, e); return;
    case T_ACK: e->type = ZHX_EV_ACK; on_answer(h, e); return;
    case T_REPLY:
        e->type = ZHX_EV_REPLY;
        e->code = p[5] & F_FAILED ? ZHX_REFUSED : ZHX_OK;
        on_answer(h, e);
        return;
    case T_ERROR:
        e->type = ZHX_EV_ERROR;
        e->code = error_of(code);
        if (e->code == ZHX_TAKEN && !(e->session == h->session && find_pending(h, e->id))) {
            close_all(e->fd, e->nfds);
            lose(h, ZHX_TAKEN);
            emit_simple(h, ZHX_EV_TAKEN, 0, 0, e->to);
            return;
        }
        if (e->session == 0) e->id = 0, emit(h, e); /* about no single thing: why it closes, for one */
        else on_answer(h, e);
        return;
    }
    close_all(e->fd, e->nfds); /* of a type that is not for this end, or of a later version */
}

static void copy_name(char *dst, const uint8_t *src, size_t n)
{
    memcpy(dst, src, n); /* n is at most 255, dst has 256 */
    dst[n] = 0;
}

/* take reads the head of the frame at p, whose names are there, and takes its descriptors. 0: they are not there. */
static int take(zhx *h, const uint8_t *p, struct zhx_event *e)
{
    memset(e, 0, sizeof *e);
    e->code = p[6], e->flags = p[5];
    e->session = get(p + 8, 8), e->id = get(p + 16, 8), e->time_ms = (uint32_t)get(p + 24, 4);
    copy_name(h->ev_to, p + HEADER, p[28]);
    copy_name(h->ev_from, p + HEADER + p[28], p[29]);
    e->to = h->ev_to, e->from = h->ev_from;
    if (p[7] > h->n_in_fd) return 0;
    e->nfds = p[7];
    memcpy(e->fd, h->in_fd, sizeof(int) * p[7]);
    h->n_in_fd -= p[7];
    memmove(h->in_fd, h->in_fd + p[7], sizeof(int) * (size_t)h->n_in_fd);
    return 1;
}

/* too_big passes over a frame that does not fit in, whose head is there: what the program is told of it, and who sent it. */
static void too_big(zhx *h, const uint8_t *p, struct zhx_event *e)
{
    uint8_t type = p[4], code = p[6];
    close_all(e->fd, e->nfds);
    e->nfds = 0;
    if (type == T_MESSAGE && code == ZHX_HANDLED) acknowledge(h, e->session, e->id); /* or it would come for ever */
    if (type == T_REQUEST) zhx_reply(h, e->session, e->id, 1, "too big", 7);
    if (type == T_REPLY) {
        struct pending *q = e->session == h->session ? find_pending(h, e->id) : NULL;
        if (q && q->kind == REQUEST) settle_error(h, q, ZHX_TOOBIG);
        return;
    }
    e->type = ZHX_EV_DROPPED, e->code = ZHX_TOOBIG;
    emit(h, e);
}

/* parse handles the whole frames in `in`. 1: it stopped because out has no room for answers. */
static int parse(zhx *h)
{
    size_t pos = 0;
    int stopped = 0;
    h->blocked = 0;
    while (h->fd >= 0) {
        const uint8_t *p = h->in + pos;
        size_t n = h->in_len - pos, size, heads;
        struct zhx_event e;
        if (h->skip > 0) {
            size_t cut = h->skip < n ? (size_t)h->skip : n;
            h->skip -= cut, pos += cut;
            if (h->skip > 0 || cut == n) break;
            continue;
        }
        if (n < HEADER) break;
        if (out_room(h) < PARSE_ROOM) {
            stopped = 1;
            break;
        }
        size = (size_t)get(p, 4), heads = (size_t)HEADER + p[28] + p[29];
        if (size > FRAME_MAX || size < heads + get(p + 30, 2) || p[7] > ZHX_FDS_MAX) {
            h->broken = 2;
            break;
        }
        h->blocked = h->paused && (p[4] == T_MESSAGE || p[4] == T_REQUEST || p[4] == T_PUBLISH) && h->state == UP;
        if (h->blocked) break;
        if (n < heads || (n < size && size <= h->in_cap)) break;
        if (!take(h, p, &e)) {
            h->broken = 2;
            break;
        }
        if (size > h->in_cap || size - heads - get(p + 30, 2) > h->max_body) {
            size_t cut = size < n ? size : n;
            too_big(h, p, &e);
            h->skip = size - cut, pos += cut;
            continue;
        }
        e.len = size - heads - (size_t)get(p + 30, 2);
        e.body = p + size - e.len;
        on_frame(h, p, &e);
        pos += size;
    }
    if (h->fd < 0) return 0; /* lost meanwhile: in is empty */
    if (pos < h->in_len) memmove(h->in, h->in + pos, h->in_len - pos);
    h->in_len -= pos;
    if (h->in_len == 0 && h->n_in_fd > 0) h->broken = 2; /* descriptors of no frame */
    return stopped;
}

/* fill reads once. It notes the end as broken = 2: nothing more is to come. */
static void fill(zhx *h)
{
    union { struct cmsghdr align; char b[CMSG_SPACE(sizeof(int) * ZHX_FDS_MAX)]; } control;
    struct iovec iov;
    struct msghdr msg;
    struct cmsghdr *c;
    ssize_t n;
    if (h->blocked && !h->broken) {
        struct pollfd hup; /* a program's poll would tell it again and again */
        hup.fd = h->fd, hup.events = 0, hup.revents = 0;
        if (poll(&hup, 1, 0) > 0) h->broken = 2;
        return;
    }
    if (h->in_len == h->in_cap) return;
    memset(&msg, 0, sizeof msg);
    iov.iov_base = h->in + h->in_len, iov.iov_len = h->in_cap - h->in_len;
    msg.msg_iov = &iov, msg.msg_iovlen = 1;
    msg.msg_control = control.b, msg.msg_controllen = sizeof control.b;
    n = recvmsg(h->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) {
        if (errno == EINTR) return;
        if ((errno != EAGAIN && errno != EWOULDBLOCK) || h->broken) h->broken = 2;
        return;
    }
    for (c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        size_t i, count;
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (h->n_in_fd < IN_FDS) h->in_fd[h->n_in_fd++] = fd;
            else close(fd), h->broken = 2;
        }
    }
    if (n == 0 || (msg.msg_flags & MSG_CTRUNC)) h->broken = 2; /* the end; more descriptors than can be, or than this process has room for */
    h->in_len += (size_t)n;
}

/* advance does all that can be done without waiting. */
static void advance(zhx *h)
{
    int64_t now = now_ms();
    int i, stopped;
    if (h->state == DOWN && now >= h->next) begin_connect(h);
    if (h->state == CONNECTING) check_connect(h);
    if ((h->state == CONNECTING || h->state == HELLO) && now >= h->next) lose(h, ZHX_CLOSED);
    if (h->state == HELLO || h->state == UP) {
        send_kept(h);
        flush_out(h);
        fill(h);
        do {
            stopped = parse(h);
            send_kept(h);
            flush_out(h);
        } while (stopped && out_room(h) >= PARSE_ROOM && h->broken != 2);
        if (h->broken == 2 && h->fd >= 0) lose(h, ZHX_CLOSED);
    }
    if (h->state == UP && !h->told_up && h->setups == 0 && !h->broken) {
        h->told_up = 1;
        emit_simple(h, ZHX_EV_UP, 0, 0, "");
    }
    for (i = 0; i < ZHX_WAITING; i++) {
        struct pending *p = &h->pending[i];
        if (p->kind != REQUEST || p->deadline == 0 || now < p->deadline) continue;
        {
            struct frame f = plain(T_CANCEL, p->to, h->names[0]);
            f.session = h->session, f.id = p->id;
            if (connected(h)) queue(h, &f, 0);
        }
        settle_error(h, p, ZHX_TIMEOUT);
    }
    flush_out(h);
}

/* ---- open and close */

static int parse_tcp(zhx *h, const char *s)
{
    struct sockaddr_in *a4 = (struct sockaddr_in *)&h->addr;
    struct sockaddr_in6 *a6 = (struct sockaddr_in6 *)&h->addr;
    const char *colon = strrchr(s, ':');
    char host[64], *end;
    long port;
    size_t n = colon ? (size_t)(colon - s) : 0;
    if (n > 1 && s[0] == '[' && colon[-1] == ']') s++, n -= 2; /* [::1]:8000 */
    if (n == 0 || n >= sizeof host) return ZHX_BAD;
    memcpy(host, s, n);
    host[n] = 0;
    port = strtol(colon + 1, &end, 10);
    if (*end || end == colon + 1 || port < 1 || port > 65535) return ZHX_BAD;
    if (strcmp(host, "localhost") == 0) strcpy(host, "127.0.0.1");
    if (inet_pton(AF_INET, host, &a4->sin_addr) == 1) {
        a4->sin_family = AF_INET, a4->sin_port = htons((uint16_t)port), h->addr_len = sizeof *a4;
    } else if (inet_pton(AF_INET6, host, &a6->sin6_addr) == 1) {
        a6->sin6_family = AF_INET6, a6->sin6_port = htons((uint16_t)port), h->addr_len = sizeof *a6;
    } else {
        return ZHX_BAD;
    }
    return ZHX_OK;
}

static int parse_address(zhx *h, const char *s)
{
    struct sockaddr_un *u = (struct sockaddr_un *)&h->addr;
    if (strncmp(s, "tcp:", 4) == 0) return parse_tcp(h, s + 4);
    if (!*s || strlen(s) >= sizeof u->sun_path) return ZHX_BAD;
    u->sun_family = AF_UNIX;
    strcpy(u->sun_path, s);
    h->addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(s) + 1);
    return ZHX_OK;
}

static const char *variable(const char *given, const char *name, const char *otherwise)
{
    const char *v = given ? given : getenv(name);
    return v && (*v || given) ? v : otherwise;
}

static void seed(zhx *h)
{
    struct timespec t;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, &h->session, sizeof h->session) != (ssize_t)sizeof h->session) h->session = 0;
        close(fd);
    }
    clock_gettime(CLOCK_REALTIME, &t);
    while (h->session == 0) h->session = ((uint64_t)t.tv_nsec++ * UINT64_C(0x9e3779b97f4a7c15)) ^ (uint64_t)t.tv_sec << 20 ^ (uint64_t)getpid();
    h->random = h->session;
}

zhx *zhx_open(const struct zhx_options *o, int *error)
{
    struct zhx_options none;
    const char *name, *address, *cookie;
    size_t body, keep, in_cap, out_cap;
    zhx *h;
    int r = ZHX_BAD;
    memset(&none, 0, sizeof none);
    if (!o) o = &none;
    if (!error) error = &r;
    *error = ZHX_BAD;
    address = variable(o->address, "ZHX_SOCKET", ZHX_DEFAULT_SOCKET);
    name = variable(o->name, "ZHX_NAME", "");
    cookie = variable(o->cookie, "ZHX_COOKIE", "");
    body = o->max_body ? o->max_body : (size_t)ZHX_BODY;
    keep = o->keep ? o->keep : (size_t)ZHX_KEEP;
    if ((*name && !valid_name(name)) || strlen(cookie) >= sizeof h->cookie || body > FRAME_MAX - HEADS || keep > (size_t)4 * FRAME_MAX) return NULL;
    in_cap = HEADS + body;
    out_cap = HEADS + body + keep + SETUP_ROOM + RESERVE;
    h = (zhx *)malloc(sizeof *h + in_cap + out_cap + keep);
    if (!h) {
        *error = ZHX_NOMEM;
        return NULL;
    }
    memset(h, 0, sizeof *h);
    h->in = (uint8_t *)(h + 1), h->in_cap = in_cap;
    h->out = h->in + in_cap, h->out_cap = out_cap;
    h->keep = h->out + out_cap, h->keep_cap = keep;
    h->max_body = h->peer_body = body;
    h->flags = o->flags, h->handler = o->handler, h->arg = o->arg;
    h->fd = -1;
    h->state = DOWN;
    if (parse_address(h, address) != ZHX_OK) {
        free(h);
        return NULL;
    }
    strcpy(h->names[0], name);
    h->n_names = 1;
    strcpy(h->cookie, cookie);
    seed(h);
    *error = ZHX_OK;
    if ((h->flags & ZHX_OPTIONAL) && strcmp(address, ZHX_DEFAULT_SOCKET) == 0 && access(address, F_OK) != 0) h->state = INERT;
    else begin_connect(h);
    return h;
}

void zhx_close(zhx *h)
{
    int i;
    if (!h) return;
    if (h->fd >= 0) close(h->fd);
    close_all(h->in_fd, h->n_in_fd);
    for (i = 0; i < h->n_out_fds; i++) close_all(h->out_fds[i].fd, h->out_fds[i].n);
    free(h);
}

/* ---- the event loop */

int zhx_fd(const zhx *h) { return h->fd; }
int zhx_up(const zhx *h) { return h->told_up; }

short zhx_events(const zhx *h)
{
    int want = 0;
    if (h->state == CONNECTING) return POLLOUT;
    if (out_room(h) >= PARSE_ROOM && !h->blocked) want |= POLLIN; /* else: only after zhxd has read something of ours */
    if (h->out_pos < h->out_len) want |= POLLOUT;
    return (short)(h->broken ? POLLIN : want);
}

int zhx_timeout(const zhx *h)
{
    int64_t at = INT64_MAX, now = now_ms();
    int i;
    if (h->state == DOWN || h->state == CONNECTING || h->state == HELLO) at = h->next;
    if (h->broken || (h->blocked && !h->paused)) at = now;
    if (h->state == UP && !h->told_up && h->setups == 0) at = now;
    for (i = 0; i < ZHX_WAITING; i++)
        if (h->pending[i].kind == REQUEST && h->pending[i].deadline && h->pending[i].deadline < at) at = h->pending[i].deadline;
    if (at == INT64_MAX) return -1;
    return at <= now ? 0 : at - now > INT_MAX ? INT_MAX : (int)(at - now);
}

void zhx_pause(zhx *h, int on) { h->paused = on; }

int zhx_process(zhx *h, int timeout_ms)
{
    int64_t end = timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
    if (h->busy) return ZHX_BUSY;
    if (h->state == DEAD) return ZHX_TAKEN;
    h->told = 0;
    for (;;) {
        struct pollfd p;
        int64_t left;
        int wait = 0;
        advance(h);
        if (h->state == DEAD) return ZHX_TAKEN;
        left = end == INT64_MAX ? INT_MAX : end - now_ms();
        if (h->told || left <= 0) return h->told;
        wait = zhx_timeout(h);
        if (wait < 0 || wait > left) wait = end == INT64_MAX && wait < 0 ? -1 : (int)left;
        p.fd = h->fd, p.events = zhx_events(h), p.revents = 0;
        poll(&p, 1, wait); /* a signal's EINTR is one more round */
    }
}

int zhx_flush(zhx *h, int timeout_ms)
{
    int64_t end = timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
    for (;;) {
        int64_t left = end == INT64_MAX ? -1 : end - now_ms();
        int i, r;
        if (h->busy) return ZHX_BUSY;
        flush_out(h);
        for (i = 0; i < ZHX_WAITING && h->pending[i].kind == FREE; i++) {}
        if (h->n_kept == 0 && i == ZHX_WAITING && h->out_pos == h->out_len && !h->broken) return h->state == DEAD ? ZHX_TAKEN : ZHX_OK;
        if (end != INT64_MAX && left <= 0) return ZHX_TIMEOUT;
        r = zhx_process(h, (int)left);
        if (r < 0) return r;
    }
}

int zhx_peer(const zhx *h)
{
    struct ucred u;
    socklen_t n = sizeof u;
    if (h->fd < 0 || h->addr.ss_family != AF_UNIX || getsockopt(h->fd, SOL_SOCKET, SO_PEERCRED, &u, &n) != 0) return 0;
    return (int)u.pid;
}

/* ---- what a program says */

static int give_id(zhx *h, int r, uint64_t *id)
{
    if (id) *id = r == ZHX_OK && connected(h) ? h->last_id : 0;
    return r;
}

/* ask posts a frame whose answer is awaited. p is NULL where there is no slot for it. */
static int ask(zhx *h, struct frame *f, int kind, struct pending *p, uint64_t *id)
{
    int r, on = connected(h);
    if (id) *id = 0;
    if (on && !p) return ZHX_FULL;
    r = post(h, f, RESERVE);
    if (r != ZHX_OK || !on) return r;
    set_pending(p, kind, h->last_id, f->type == T_REGISTER ? f->from : f->to);
    if (id) *id = h->last_id;
    return ZHX_OK;
}

int zhx_register(zhx *h, const char *name, uint64_t *id)
{
    struct frame f;
    int i, at = -1;
    if (id) *id = 0;
    if (!valid_name(name)) return ZHX_BAD;
    for (i = 0; i < h->n_names; i++)
        if (strcmp(h->names[i], name) == 0) at = i;
    if (at < 0 && h->n_names == ZHX_NAMES) return ZHX_FULL;
    if (connected(h)) {
        int r;
        f = plain(T_REGISTER, "", name);
        r = ask(h, &f, SEND, new_pending(h), id);
        if (r != ZHX_OK) return r;
    } else if (h->state == DEAD) {
        return ZHX_TAKEN;
    }
    if (at < 0) strcpy(h->names[h->n_names++], name);
    return ZHX_OK;
}

static int keep_message(zhx *h, struct frame *f, uint64_t *id)
{
    size_t n = frame_size(f);
    struct kept *k;
    if (n > h->keep_cap) return ZHX_TOOBIG;
    if (h->n_kept == ZHX_KEPT || h->keep_cap - h->keep_len < n) return ZHX_FULL;
    f->session = h->session, f->id = ++h->last_id;
    k = &h->kept[h->n_kept++];
    k->id = f->id, k->off = h->keep_len, k->len = n, k->state = FRESH;
    write_frame(h->keep + h->keep_len, f);
    h->keep_len += n;
    if (id) *id = f->id;
    send_kept(h);
    if (!h->busy) flush_out(h);
    return ZHX_OK;
}

/* with_fds posts a frame with descriptors, of which it makes duplicates. */
static int with_fds(zhx *h, struct frame *f, const int *fd, int nfds, int own_id)
{
    struct outfds o;
    int i, r;
    if (nfds < 0 || nfds > ZHX_FDS_MAX) return ZHX_BAD;
    if (!connected(h)) return unconnected(h);
    if (nfds > 0) {
        if (h->addr.ss_family != AF_UNIX) return ZHX_NOFDS;
        if (h->state != UP) return ZHX_CLOSED;
        if (!h->peer_fds) return ZHX_NOFDS;
        if (h->n_out_fds == OUT_FDS) return ZHX_FULL;
    }
    f->fds = (uint8_t)nfds;
    o.n = 0;
    for (i = 0; i < nfds; i++) {
        o.fd[i] = fcntl(fd[i], F_DUPFD_CLOEXEC, 0);
        if (o.fd[i] < 0) {
            close_all(o.fd, i);
            return ZHX_BAD;
        }
        o.n++;
    }
    if (own_id) f->session = h->session, f->id = h->last_id + 1;
    r = queue(h, f, RESERVE);
    if (r != ZHX_OK) {
        close_all(o.fd, o.n);
        return r;
    }
    if (own_id) h->last_id++;
    o.at = h->out_base + h->out_len - frame_size(f);
    if (o.n > 0) h->out_fds[h->n_out_fds++] = o;
    if (!h->busy) flush_out(h);
    return ZHX_OK;
}

int zhx_send_message(zhx *h, const struct zhx_message *m, uint64_t *id)
{
    struct frame f;
    struct pending *p = NULL;
    int r, on = connected(h);
    const char *from = own(h, m->from);
    if (id) *id = 0;
    if (!valid_name(m->to) || (*from && !valid_name(from)) || m->level < ZHX_NONE || m->level > ZHX_HANDLED || (m->len && !m->body)) return ZHX_BAD;
    if (m->len > h->peer_body) return ZHX_TOOBIG;
    f = plain(T_MESSAGE, m->to, from);
    f.flags = (uint8_t)(m->flags & ZHX_NO_HOLD);
    f.code = (uint8_t)m->level, f.time = m->time_ms, f.body = m->body, f.len = m->len;
    if (m->level == ZHX_HANDLED) {
        if (m->nfds) return ZHX_NOFDS;
        return !on && unconnected(h) != ZHX_CLOSED ? unconnected(h) : keep_message(h, &f, id);
    }
    if (m->level != ZHX_NONE && on && !(p = new_pending(h))) return ZHX_FULL;
    r = with_fds(h, &f, m->fd, m->nfds, 1);
    if (r == ZHX_OK && p) set_pending(p, SEND, f.id, m->to);
    if (r == ZHX_OK && on && id) *id = f.id;
    return r;
}

int zhx_send(zhx *h, const char *to, int level, const void *body, size_t len, uint64_t *id)
{
    struct zhx_message m;
    memset(&m, 0, sizeof m);
    m.to = to, m.level = level, m.body = body, m.len = len;
    return zhx_send_message(h, &m, id);
}

int zhx_ack(zhx *h, uint64_t session, uint64_t id)
{
    int i = find_later(h, session, id);
    if (i < 0) return ZHX_BAD;
    h->later[i] = h->later[--h->n_later];
    acknowledge(h, session, id);
    if (!h->busy) flush_out(h);
    return ZHX_OK;
}

int zhx_request(zhx *h, const char *to, const void *body, size_t len, int timeout_ms, zhx_handler fn, void *arg, uint64_t *id)
{
    struct frame f;
    struct pending *p = new_pending(h);
    uint64_t got;
    int r;
    if (id) *id = 0;
    if (!valid_name(to) || timeout_ms == 0 || timeout_ms < -1 || (len && !body)) return ZHX_BAD;
    if (len > h->peer_body) return ZHX_TOOBIG;
    if (!connected(h)) return h->state == DEAD ? ZHX_TAKEN : ZHX_CLOSED;
    f = plain(T_REQUEST, to, h->names[0]);
    f.time = timeout_ms < 0 ? 0 : (uint32_t)timeout_ms, f.body = body, f.len = len;
    r = ask(h, &f, REQUEST, p, &got);
    if (r != ZHX_OK) return r;
    p->deadline = timeout_ms < 0 ? 0 : now_ms() + timeout_ms;
    p->fn = fn, p->arg = arg;
    if (id) *id = got;
    return ZHX_OK;
}

int zhx_cancel(zhx *h, uint64_t id)
{
    struct pending *p = find_pending(h, id);
    struct frame f;
    if (!p || p->kind != REQUEST) return ZHX_BAD;
    f = plain(T_CANCEL, p->to, h->names[0]);
    f.session = h->session, f.id = id;
    if (connected(h)) queue(h, &f, 0); /* no room: the reply is passed over when it comes */
    p->kind = FREE;
    if (!h->busy) flush_out(h);
    return ZHX_OK;
}

struct call { int done, code; uint8_t *reply; size_t cap, len; };

static int on_called(zhx *h, struct zhx_event *e, void *arg)
{
    struct call *c = (struct call *)arg;
    (void)h;
    c->done = 1;
    c->code = e->code;
    if (e->type != ZHX_EV_REPLY) return ZHX_DONE;
    c->len = e->len;
    if (e->len > c->cap) c->code = ZHX_TOOBIG;
    if (c->cap > 0) memcpy(c->reply, e->body, e->len < c->cap ? e->len : c->cap);
    return ZHX_DONE;
}

int zhx_call(zhx *h, const char *to, const void *body, size_t len, void *reply, size_t cap, size_t *reply_len, int timeout_ms)
{
    int64_t end = timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
    struct call c;
    uint64_t id = 0;
    memset(&c, 0, sizeof c);
    c.reply = (uint8_t *)reply, c.cap = reply ? cap : 0;
    if (reply_len) *reply_len = 0;
    if (h->busy) return ZHX_BUSY;
    if (h->state == INERT) return ZHX_CLOSED;
    while (!c.done) {
        int64_t left = end == INT64_MAX ? -1 : end - now_ms();
        int r = ZHX_OK;
        if (id == 0) {
            if (end != INT64_MAX && left <= 0) return connected(h) ? ZHX_TIMEOUT : ZHX_CLOSED;
            r = zhx_request(h, to, body, len, (int)left, on_called, &c, &id);
            if (r != ZHX_OK && r != ZHX_CLOSED && r != ZHX_FULL) return r;
        }
        r = zhx_process(h, left < 0 ? -1 : (int)left);
        if (r < 0 && !c.done) return r;
    }
    if (reply_len) *reply_len = c.len;
    return c.code;
}

int zhx_reply_fds(zhx *h, uint64_t session, uint64_t id, int failed, const void *body, size_t len, const int *fd, int nfds)
{
    struct frame f = plain(T_REPLY, "", h->names[0]);
    if (len && !body) return ZHX_BAD;
    if (len > h->peer_body) return ZHX_TOOBIG;
    f.flags = failed ? F_FAILED : 0;
    f.session = session, f.id = id, f.body = body, f.len = len;
    return with_fds(h, &f, fd, nfds, 0);
}

int zhx_reply(zhx *h, uint64_t session, uint64_t id, int failed, const void *body, size_t len)
{
    return zhx_reply_fds(h, session, id, failed, body, len, NULL, 0);
}

int zhx_publish(zhx *h, const char *topic, int level, unsigned flags, const void *body, size_t len, uint64_t *id)
{
    struct frame f;
    if (id) *id = 0;
    if (!valid(topic, ZHX_TOPIC_MAX, ".") || (level != ZHX_NONE && level != ZHX_ACCEPTED) || (len && !body)) return ZHX_BAD;
    if (len > h->peer_body) return ZHX_TOOBIG;
    f = plain(T_PUBLISH, topic, h->names[0]);
    f.flags = (uint8_t)(flags & ZHX_RETAIN);
    f.code = (uint8_t)level, f.body = body, f.len = len;
    return level == ZHX_NONE ? give_id(h, post(h, &f, RESERVE), id) : ask(h, &f, SEND, new_pending(h), id);
}

int zhx_subscribe(zhx *h, const char *pattern, int policy, uint32_t waiting, uint64_t *id)
{
    struct frame f;
    int i, r = ZHX_OK;
    if (id) *id = 0;
    if (!valid(pattern, ZHX_TOPIC_MAX, ".*>") || policy < ZHX_DROP_OLDEST || policy > ZHX_DISCONNECT) return ZHX_BAD;
    for (i = 0; i < h->n_patterns && strcmp(h->patterns[i].s, pattern) != 0; i++) {}
    if (i == ZHX_PATTERNS) return ZHX_FULL;
    f = plain(T_SUBSCRIBE, pattern, h->names[0]);
    f.code = (uint8_t)policy, f.time = waiting;
    if (connected(h)) r = ask(h, &f, SEND, new_pending(h), id);
    if (r != ZHX_OK) return r;
    strcpy(h->patterns[i].s, pattern);
    h->patterns[i].policy = (uint8_t)policy, h->patterns[i].waiting = waiting;
    if (i == h->n_patterns) h->n_patterns++;
    return h->state == DEAD ? ZHX_TAKEN : ZHX_OK;
}

int zhx_unsubscribe(zhx *h, const char *pattern)
{
    struct frame f;
    int i, r = ZHX_OK;
    for (i = 0; i < h->n_patterns && strcmp(h->patterns[i].s, pattern) != 0; i++) {}
    if (i == h->n_patterns) return ZHX_BAD;
    f = plain(T_UNSUBSCRIBE, pattern, "");
    if (connected(h)) r = post(h, &f, 0);
    if (r == ZHX_OK) h->patterns[i] = h->patterns[--h->n_patterns];
    return r;
}

int zhx_watch(zhx *h, const char *name)
{
    struct frame f;
    int i, r = ZHX_OK;
    if (!valid_name(name)) return ZHX_BAD;
    for (i = 0; i < h->n_watches && strcmp(h->watches[i], name) != 0; i++) {}
    if (i == ZHX_WATCHES) return ZHX_FULL;
    f = plain(T_WATCH, name, "");
    if (connected(h)) r = post(h, &f, RESERVE);
    if (r != ZHX_OK) return r;
    strcpy(h->watches[i], name);
    if (i == h->n_watches) h->n_watches++;
    return h->state == DEAD ? ZHX_TAKEN : ZHX_OK;
}

int zhx_unwatch(zhx *h, const char *name)
{
    struct frame f;
    int i, r = ZHX_OK;
    for (i = 0; i < h->n_watches && strcmp(h->watches[i], name) != 0; i++) {}
    if (i == h->n_watches) return ZHX_BAD;
    f = plain(T_UNWATCH, name, "");
    if (connected(h)) r = post(h, &f, 0);
    if (r == ZHX_OK) memmove(h->watches[i], h->watches[i + 1], sizeof h->watches[0] * (size_t)(--h->n_watches - i));
    return r;
}

static int feed(zhx *h, const char *from, const char *checkpoint, int what)
{
    struct frame f = plain(T_FEED, checkpoint, from);
    f.code = (uint8_t)what;
    if (!valid_name(from) || (what == FEED_CHECKPOINT && !valid_name(checkpoint))) return ZHX_BAD;
    return post(h, &f, 0);
}

int zhx_arm(zhx *h, const char *from)
{
    int i, r = ZHX_OK;
    from = own(h, from);
    for (i = 0; i < h->n_armed && strcmp(h->armed[i].name, from) != 0; i++) {}
    if (i == ZHX_NAMES) return ZHX_FULL;
    if (!valid_name(from)) return ZHX_BAD;
    if (connected(h)) r = feed(h, from, "", FEED_ARM);
    if (r != ZHX_OK) return r;
    strcpy(h->armed[i].name, from);
    if (i == h->n_armed) h->armed[h->n_armed++].ever = 0;
    h->armed[i].ever = h->armed[i].here = (uint8_t)connected(h);
    return h->state == DEAD ? ZHX_TAKEN : ZHX_OK;
}

int zhx_feed(zhx *h, const char *from) { return feed(h, own(h, from), "", FEED_ALIVE); }
int zhx_checkpoint(zhx *h, const char *from, const char *checkpoint) { return feed(h, own(h, from), checkpoint, FEED_CHECKPOINT); }
