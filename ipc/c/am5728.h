/* am5728.h: the system's headers that programs written for the prototype get by this name. sock.h includes it. */
#ifndef _AM5728_H
#define _AM5728_H

#include <arpa/inet.h>
#include <memory.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>

#endif
