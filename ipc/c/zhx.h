/*
 * zhx.h: a C client of zhx, the message broker, process manager and watchdog of an embedded Linux board.
 *
 * It speaks protocol 2 (ipc/PROTOCOL.md). To use it, compile zhx.c into the program: C99 or C++, POSIX.1-2008 and Linux 4.4
 * or newer, no library but libc. example.c shows all of it in a page.
 *
 * Rules of the whole interface
 * - One handle, one thread. The library starts no thread, installs no signal handler, raises no SIGPIPE, and holds no
 *   state outside its handles. After fork() only the parent may use a handle; its descriptors close on exec.
 * - Nothing waits, but zhx_process, zhx_flush and zhx_call, and these no longer than they are told to. Times are in
 *   milliseconds of the monotonic clock: 0 is "do not wait", -1 "for ever".
 * - Memory is taken once, by zhx_open, and freed by zhx_close: 2 x max_body + 2 x keep + 140 KiB. What is not used of
 *   it is never touched, so that Linux does not really give it. What does not fit is refused with ZHX_FULL or ZHX_TOOBIG.
 * - Functions that return int return 0 (or a count) for success and a negative ZHX_... for an error; zhx_word names it.
 * - Strings and bodies that are passed in are copied before the call returns. What an event points to is the library's
 *   and lasts until the handler returns.
 * - A lost connection is made again by the library, after 10 ms at first and up to 1 s later, with all names, subscriptions
 *   and watches, as long as the program calls zhx_process. What was under way then: messages of level ZHX_HANDLED are sent
 *   again; all else that waited for an answer ends with ZHX_CLOSED, and may have had its effect or not.
 * - What arrives is not trusted. A peer that breaks the protocol is disconnected, and the connection made anew.
 */
#ifndef ZHX_H
#define ZHX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZHX_DEFAULT_SOCKET "/run/zhx/zhx.sock"

enum {                     /* sizes; bytes where nothing else is said */
    ZHX_NAME_MAX = 64,     /* of a name, without its NUL: A-Z a-z 0-9 _ -, not beginning with - */
    ZHX_TOPIC_MAX = 200,   /* of a topic or pattern, without its NUL */
    ZHX_FDS_MAX = 4,       /* descriptors with one message */
    ZHX_NAMES = 16,        /* names registered by one handle */
    ZHX_PATTERNS = 32,     /* subscriptions of one handle */
    ZHX_WATCHES = 32,      /* names watched by one handle */
    ZHX_WAITING = 256,     /* requests, and messages of level accepted or written, that wait for their answer */
    ZHX_KEPT = 256,        /* messages of level handled that wait for theirs */
    ZHX_LATERS = 64,       /* messages that a handler has put off with ZHX_LATER */
    ZHX_SENDERS = 1024,    /* senders of handled messages that are remembered, to know their duplicates */
    ZHX_BODY = 256 * 1024, /* default of zhx_options.max_body */
    ZHX_KEEP = 64 * 1024   /* default of zhx_options.keep */
};

enum { /* errors. -1 to -14 come from zhx (with any of them, nothing was done), the rest from this library */
    ZHX_OK = 0,
    ZHX_NONAME = -1,      /* nobody has this name */
    ZHX_RESTARTING = -2,  /* its client restarts, and the message was not to wait; event.time_ms: when, if known */
    ZHX_STOPPED = -3,     /* its client is not to run */
    ZHX_FAILED = -4,      /* its client is not started again by itself */
    ZHX_FULL = -5,        /* no room: there, or in this handle: call zhx_process, then try again */
    ZHX_DENIED = -6,      /* zhx's configuration forbids it, or the name is another's, or the cookie is wrong */
    ZHX_TOOBIG = -7,      /* the body; or a name that a receiver of protocol 1 cannot be told */
    ZHX_EXPIRED = -8,     /* its time was over before it was written */
    ZHX_STUCK = -9,       /* the receiver does not read */
    ZHX_GONE = -10,       /* the receiver ended with the request */
    ZHX_NOFDS = -11,      /* descriptors do not get there */
    ZHX_BAD = -12,        /* an argument makes no sense */
    ZHX_TAKEN = -13,      /* another connection has the name now; this handle is of no more use: close it */
    ZHX_UNANSWERED = -14, /* the receiver speaks protocol 1 and cannot reply */
    ZHX_CLOSED = -15,     /* there is no connection, or it was lost before the answer came */
    ZHX_TIMEOUT = -16,    /* no reply within the caller's time */
    ZHX_REFUSED = -17,    /* the receiver replied that it failed; the body says why */
    ZHX_BUSY = -18,       /* not from inside a handler */
    ZHX_NOMEM = -19       /* zhx_open */
};

enum { /* levels of acknowledgement: when ZHX_EV_ACK comes */
    ZHX_NONE = 0,     /* never; ZHX_EV_ERROR comes all the same if it is not delivered */
    ZHX_ACCEPTED = 1, /* zhx has written it, or holds it while the receiver restarts */
    ZHX_WRITTEN = 2,  /* it is in the receiver's socket */
    ZHX_HANDLED = 3   /* the receiver is done with it. Kept here, and sent again after a lost connection, until then */
};

enum { /* flags of messages and events */
    ZHX_REPEAT = 1,  /* event: this message may have been given to this name before (to a run that died with it) */
    ZHX_NO_HOLD = 2, /* sent: refused rather than held while the receiver restarts: for commands that must not be stale */
    ZHX_RETAIN = 8,  /* publish: keep as the topic's last value. Event: it is such a one, not a new one */
    ZHX_FROM_V1 = 16 /* event: came by protocol 1; the body is 512 bytes, of which text ends at the first NUL */
};

enum { /* states of a name, see zhx_watch */
    ZHX_STATE_ABSENT = 0,
    ZHX_STATE_RUNNING = 1,
    ZHX_STATE_READY = 2,
    ZHX_STATE_LATE = 3, /* half of its watchdog's time is over */
    ZHX_STATE_RESTARTING = 4,
    ZHX_STATE_FAILED = 5,
    ZHX_STATE_STOPPED = 6
};

enum { /* policies of a subscription for what it has no room for */
    ZHX_DROP_OLDEST = 0,
    ZHX_DROP_NEWEST = 1,
    ZHX_LATEST_ONLY = 2,
    ZHX_DISCONNECT = 3
};

enum { /* kinds of events; "about" says which fields of zhx_event mean something, beside type */
    ZHX_EV_UP = 1,      /* connected, all names registered (a refused one was told before by ZHX_EV_ERROR); what was kept is sent */
    ZHX_EV_DOWN,        /* the connection is lost; it is made again by itself */
    ZHX_EV_TAKEN,       /* to: the name that another connection has now. The last event of this handle */
    ZHX_EV_MESSAGE,     /* to, from, body, flags, fd; session and id for zhx_ack; code: the level that the sender asked for */
    ZHX_EV_REQUEST,     /* to, from, body, flags, fd, time_ms (to reply within; 0: none); session and id for zhx_reply */
    ZHX_EV_CANCEL,      /* session, id: the reply to that request is of no use any more */
    ZHX_EV_ACK,         /* id: of the message; code: the level reached. Of a registration, subscription, publication: code 1 */
    ZHX_EV_ERROR,       /* id: of what failed (0: of no single thing); code: ZHX_...; to: what it is about; body: text for people */
    ZHX_EV_REPLY,       /* id: of the request; from, body, fd; code: 0, or ZHX_REFUSED */
    ZHX_EV_PUBLICATION, /* to: the topic; from, body, flags */
    ZHX_EV_GAP,         /* to: a pattern; id: how many publications of it were lost on the way here */
    ZHX_EV_STATE,       /* to: a name; code: ZHX_STATE_...; id: counts its changes; body: JSON with run, pid, cause, exit_code ... */
    ZHX_EV_DROPPED      /* to, from, session, id: something of more than max_body bytes came and was thrown away */
};

struct zhx_event {
    int type;
    int code;
    unsigned flags;
    uint32_t time_ms;
    uint64_t session, id;
    const char *to, *from; /* never NULL; end with NUL */
    const unsigned char *body; /* never NULL; no NUL is added */
    size_t len;                /* of body */
    int nfds;
    int fd[ZHX_FDS_MAX]; /* closed after the handler returns; to keep one, take it and put -1 in its place */
};

typedef struct zhx zhx;

/* What a handler returns. ZHX_LATER counts for ZHX_EV_MESSAGE of code ZHX_HANDLED alone: the program acknowledges it itself,
 * by zhx_ack, when it is done. Until then zhx gives this name no other handled message. */
enum { ZHX_DONE = 0, ZHX_LATER = 1 };

/* A handler is called from zhx_process, zhx_flush and zhx_call only. It may call every function of this file but these three
 * and zhx_close. */
typedef int (*zhx_handler)(zhx *h, struct zhx_event *event, void *arg);

enum { /* zhx_options.flags */
    ZHX_OPTIONAL = 1 /* as long as no connection was ever made, whatever is sent succeeds without effect (requests fail all the
                        same), as with sd_notify. Without an address and a socket in the usual place none is looked for either */
};

struct zhx_options {      /* all zero: the defaults */
    const char *address;  /* path of the socket, or "tcp:HOST:PORT", HOST numeric or localhost. NULL: $ZHX_SOCKET, else ZHX_DEFAULT_SOCKET */
    const char *name;     /* to register, and to send from. NULL: $ZHX_NAME, else none. "": none */
    const char *cookie;   /* TCP: path of the file with the cookie, read at each connection. NULL: $ZHX_COOKIE */
    unsigned flags;       /* ZHX_OPTIONAL */
    size_t max_body;      /* the largest body that is received or sent, under 16 MiB, 0: ZHX_BODY. Not less than zhxd's own limit, if all is to come */
    size_t keep;          /* room for messages of level handled, at most 64 MiB, 0: ZHX_KEEP; each needs its body, both names and 32 bytes */
    zhx_handler handler;  /* NULL: events are thrown away, handled messages acknowledged */
    void *arg;            /* for the handler */
};

/* zhx_open makes a handle and begins to connect; it does not wait, and that there is no zhxd is no error (see ZHX_EV_UP). NULL is
 * an error, *error (if not NULL) says which: ZHX_BAD (an option or variable makes no sense), ZHX_NOMEM. o may be NULL. */
zhx *zhx_open(const struct zhx_options *o, int *error);

/* zhx_close ends the connection and frees h (NULL: nothing). What is not sent yet is lost: zhx_flush first. */
void zhx_close(zhx *h);

/* ---- the event loop: poll zhx_fd for zhx_events, at most zhx_timeout ms, then zhx_process(h, 0). Ask all three before each poll: the
 * descriptor is another one after a reconnection, and -1 (poll then just waits) while there is none. */
int zhx_fd(const zhx *h);
short zhx_events(const zhx *h);  /* POLLIN, POLLOUT */
int zhx_timeout(const zhx *h);   /* ms until zhx_process is to be called, whatever poll says; -1: no need */

/* zhx_process reads, writes, connects, and calls the handler for what has come; if there is nothing, it waits up to timeout_ms for it.
 * It returns how many events it told; ZHX_TAKEN after ZHX_EV_TAKEN; ZHX_BUSY. */
int zhx_process(zhx *h, int timeout_ms);

/* zhx_flush processes until everything is sent and every message that asked for an acknowledgement, and every request, has its
 * answer: what a short program does before it ends. 0, ZHX_TIMEOUT, ZHX_TAKEN, ZHX_BUSY. */
int zhx_flush(zhx *h, int timeout_ms);

/* zhx_pause(h, 1) stops messages, requests and publications, also from inside a handler, until zhx_pause(h, 0): a program that has no
 * room for more lets zhx slow its senders down, and refuse what they send then, instead of losing it. Answers to what this handle
 * asked may wait behind them. What was read already is lost with the connection, but comes again if it is of level handled. */
void zhx_pause(zhx *h, int on);

/* zhx_up tells whether zhx has welcomed this connection and answered for its names. */
int zhx_up(const zhx *h);

/* zhx_peer is the pid of the process that listens (Unix socket, connected), else 0. */
int zhx_peer(const zhx *h);

/* ---- names. zhx_register makes this handle the receiver of one more name; it stays so after a reconnection. The answer is
 * ZHX_EV_ACK or ZHX_EV_ERROR with *id; with *id 0 (not connected now) only an error is told. id may be NULL, here and below. */
int zhx_register(zhx *h, const char *name, uint64_t *id);

/* ---- messages. zhx_send sends len bytes (0 to max_body) to a name. What became of it is told by an event with *id, see the levels.
 * ZHX_FULL: not sent, nothing changed. ZHX_CLOSED: no connection (ZHX_HANDLED is kept instead, and 0 returned). */
int zhx_send(zhx *h, const char *to, int level, const void *body, size_t len, uint64_t *id);

struct zhx_message { /* everything that a message can have; the rest zero */
    const char *to;
    const char *from; /* NULL: the handle's name. Need not be registered, but zhx must allow it to this process */
    const void *body;
    size_t len;
    int level;
    unsigned flags;   /* ZHX_NO_HOLD */
    uint32_t time_ms; /* how long it may wait before it is written; 0: as long as zhx is configured to */
    const int *fd;    /* nfds descriptors, which stay the caller's: duplicates are sent. They need ZHX_EV_UP, a Unix */
    int nfds;         /* socket, a level other than handled, and a receiver that is there; else ZHX_CLOSED, ZHX_NOFDS */
};
int zhx_send_message(zhx *h, const struct zhx_message *m, uint64_t *id);

/* zhx_ack acknowledges a handled message that a handler has put off with ZHX_LATER. It may be called whether connected or not.
 * ZHX_BAD: there is none such. */
int zhx_ack(zhx *h, uint64_t session, uint64_t id);

/* ---- requests. zhx_request asks `to` and calls fn (NULL: the handle's handler) exactly once, with ZHX_EV_REPLY, or with ZHX_EV_ERROR:
 * after timeout_ms (1 .. 2^31-1; -1: never) ZHX_TIMEOUT. zhx_close calls nothing. */
int zhx_request(zhx *h, const char *to, const void *body, size_t len, int timeout_ms, zhx_handler fn, void *arg, uint64_t *id);

/* zhx_cancel forgets a request of this handle: fn is not called. ZHX_BAD: there is none such. */
int zhx_cancel(zhx *h, uint64_t id);

/* zhx_call is a request that waits for its reply, up to timeout_ms, also for a connection. Meanwhile other events go to the handler. The
 * reply is put in reply, at most cap bytes, its full length in *reply_len (may be NULL). 0; ZHX_REFUSED (reply says why); ZHX_TOOBIG
 * (more than cap); ZHX_TIMEOUT; ZHX_CLOSED; ZHX_BUSY; what zhx says. Descriptors of the reply are closed. */
int zhx_call(zhx *h, const char *to, const void *body, size_t len, void *reply, size_t cap, size_t *reply_len, int timeout_ms);

/* zhx_reply answers a ZHX_EV_REQUEST, in its handler or later; failed: it could not be done, and body says why. */
int zhx_reply(zhx *h, uint64_t session, uint64_t id, int failed, const void *body, size_t len);
int zhx_reply_fds(zhx *h, uint64_t session, uint64_t id, int failed, const void *body, size_t len, const int *fd, int nfds);

/* ---- topics: words of A-Z a-z 0-9 _ - with dots between. In a pattern * is any one word, > at the end one or more.
 * level: ZHX_NONE or ZHX_ACCEPTED. flags: ZHX_RETAIN; an empty body with it takes the last value away. */
int zhx_publish(zhx *h, const char *topic, int level, unsigned flags, const void *body, size_t len, uint64_t *id);

/* waiting: how many publications zhx may hold for this handle while it reads slowly, 0: 64. Again with the same pattern: a change. */
int zhx_subscribe(zhx *h, const char *pattern, int policy, uint32_t waiting, uint64_t *id);
int zhx_unsubscribe(zhx *h, const char *pattern);

/* ---- presence: ZHX_EV_STATE comes at once, and then after each change, also after a reconnection. */
int zhx_watch(zhx *h, const char *name);
int zhx_unwatch(zhx *h, const char *name);

/* ---- the watchdog of the handle's name (from: NULL) or of another one. Armed once, it is fed by zhx_feed and passes checkpoints.
 * A new zhxd is told of the arming by the library; no feed is ever sent by the library itself. */
int zhx_arm(zhx *h, const char *from);
int zhx_feed(zhx *h, const char *from);
int zhx_checkpoint(zhx *h, const char *from, const char *checkpoint);

/* zhx_word is one lower-case word for an error: "noname" ... "unanswered", "closed", "timeout", "refused", "busy", "nomem"; 0: "ok". */
const char *zhx_word(int error);

#ifdef __cplusplus
}
#endif
#endif
