/* What runs for every delta, in C: as packed.py, codec.py and columns.py of broker/protocol and
 * broker/core/fast_path.py, which say what is promised. Tests compare both with the same input.
 *
 * Nothing here calls code of users between its first look and its last write: the interpreter's
 * lock makes `set` one step. Types are compared exactly, since a subclass may override anything;
 * whatever is not plain is left to the exact path in Python.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <structmember.h>

#define MAX_DEPTH 32                      /* of lists and maps in each other */
#define HEAD_BYTES 5                      /* as broker.protocol.values */
#define SCALAR_BYTES 15
#define MAX_PACKED_BYTES ((1 << 20) + HEAD_BYTES)
#define ROW_BYTES (HEAD_BYTES + SCALAR_BYTES)
#define SHORT_BYTES 64                    /* `longest` of a new intake */


/* -- a value as MessagePack -------------------------------------------------------------------- */

#define ON_STACK 1024

typedef struct {
    char *data;
    Py_ssize_t size, room, limit;
    char stack[ON_STACK];
} Buffer;

/* Why a value was not packed: NOT_PLAIN means that the exact path has to look at it. */
enum { PACKED, NOT_PLAIN, NO_MEMORY };

static int
make_room(Buffer *buffer, Py_ssize_t more)
{
    Py_ssize_t room = buffer->room * 4;
    char *data;

    if (buffer->size + more > buffer->limit + SCALAR_BYTES) {
        return NOT_PLAIN; /* `more` may be an upper bound */
    }
    while (room < buffer->size + more) {
        room *= 4;
    }
    data = PyMem_Realloc(buffer->data == buffer->stack ? NULL : buffer->data, room);
    if (data == NULL) {
        return NO_MEMORY;
    }
    if (buffer->data == buffer->stack) {
        memcpy(data, buffer->stack, buffer->size);
    }
    buffer->data = data;
    buffer->room = room;
    return PACKED;
}

static inline int
reserve(Buffer *buffer, Py_ssize_t more)
{
    return buffer->size + more <= buffer->room ? PACKED : make_room(buffer, more);
}

/* Write a number big-endian; room was reserved. */
static inline void
write_number(Buffer *buffer, uint64_t number, int bytes)
{
    unsigned char *at = (unsigned char *)buffer->data + buffer->size;

    for (int n = bytes - 1; n >= 0; n--) {
        at[n] = (unsigned char)number;
        number >>= 8;
    }
    buffer->size += bytes;
}

static inline void
write_byte(Buffer *buffer, unsigned char byte)
{
    buffer->data[buffer->size++] = (char)byte;
}

static inline void
write_head(Buffer *buffer, unsigned char kind, uint64_t number, int bytes)
{
    write_byte(buffer, kind);
    write_number(buffer, number, bytes);
}

static int
pack_bytes(Buffer *buffer, const char *data, Py_ssize_t size)
{
    int fault = size > buffer->limit ? NOT_PLAIN : reserve(buffer, HEAD_BYTES + size);

    if (fault) {
        return fault;
    }
    if (size <= 0xFF) {
        write_head(buffer, 0xC4, size, 1);
    }
    else if (size <= 0xFFFF) {
        write_head(buffer, 0xC5, size, 2);
    }
    else {
        write_head(buffer, 0xC6, size, 4);
    }
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return PACKED;
}

static int
pack_text(Buffer *buffer, PyObject *text)
{
    Py_ssize_t size;
    const char *data;
    int fault;

    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        data = (const char *)PyUnicode_1BYTE_DATA(text);
        size = PyUnicode_GET_LENGTH(text);
    }
    else {
        data = PyUnicode_AsUTF8AndSize(text, &size);
        if (data == NULL) {
            int is_memory = PyErr_ExceptionMatches(PyExc_MemoryError);
            PyErr_Clear();
            return is_memory ? NO_MEMORY : NOT_PLAIN; /* a surrogate */
        }
    }
    fault = size > buffer->limit ? NOT_PLAIN : reserve(buffer, HEAD_BYTES + size);
    if (fault) {
        return fault;
    }
    if (size < 32) {
        write_byte(buffer, 0xA0 | (unsigned char)size);
    }
    else if (size <= 0xFF) {
        write_head(buffer, 0xD9, size, 1);
    }
    else if (size <= 0xFFFF) {
        write_head(buffer, 0xDA, size, 2);
    }
    else {
        write_head(buffer, 0xDB, size, 4);
    }
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return PACKED;
}

/* Whether an exact int is within 64 bits; then its bits, and whether it is below 0. */
static int
is_number_in_range(PyObject *value, uint64_t *bits, int *is_negative)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);

    *is_negative = overflow < 0 || (overflow == 0 && number < 0);
    *bits = (uint64_t)number;
    if (overflow > 0) {
        *bits = PyLong_AsUnsignedLongLong(value);
        if (*bits == (uint64_t)-1 && PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
    }
    return overflow >= 0;
}

static int
pack_int(Buffer *buffer, PyObject *value)
{
    uint64_t bits;
    int is_negative;
    int64_t number;

    if (!is_number_in_range(value, &bits, &is_negative)) {
        return NOT_PLAIN;
    }
    number = (int64_t)bits;
    if (!is_negative) {
        if (bits < 0x80) {
            write_byte(buffer, (unsigned char)bits);
        }
        else if (bits <= 0xFF) {
            write_head(buffer, 0xCC, bits, 1);
        }
        else if (bits <= 0xFFFF) {
            write_head(buffer, 0xCD, bits, 2);
        }
        else if (bits <= 0xFFFFFFFF) {
            write_head(buffer, 0xCE, bits, 4);
        }
        else {
            write_head(buffer, 0xCF, bits, 8);
        }
    }
    else if (number >= -32) {
        write_byte(buffer, (unsigned char)bits);
    }
    else if (number >= INT8_MIN) {
        write_head(buffer, 0xD0, bits, 1);
    }
    else if (number >= INT16_MIN) {
        write_head(buffer, 0xD1, bits, 2);
    }
    else if (number >= INT32_MIN) {
        write_head(buffer, 0xD2, bits, 4);
    }
    else {
        write_head(buffer, 0xD3, bits, 8);
    }
    return PACKED;
}

static void
write_count(Buffer *buffer, unsigned char few, unsigned char many, Py_ssize_t count)
{
    if (count < 16) {
        write_byte(buffer, few | (unsigned char)count);
    }
    else if (count <= 0xFFFF) {
        write_head(buffer, many, count, 2);
    }
    else {
        write_head(buffer, many + 1, count, 4);
    }
}

static int
pack(Buffer *buffer, PyObject *value, int depth)
{
    int fault = reserve(buffer, SCALAR_BYTES);

    if (fault) {
        return fault;
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        write_head(buffer, 0xCB, bits, 8);
        return PACKED;
    }
    if (PyUnicode_CheckExact(value)) {
        return pack_text(buffer, value);
    }
    if (PyLong_CheckExact(value)) {
        return pack_int(buffer, value);
    }
    if (value == Py_None) {
        write_byte(buffer, 0xC0);
        return PACKED;
    }
    if (PyBool_Check(value)) {
        write_byte(buffer, value == Py_True ? 0xC3 : 0xC2);
        return PACKED;
    }
    if (PyBytes_CheckExact(value)) {
        return pack_bytes(buffer, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    }
    if (depth > MAX_DEPTH) {
        return NOT_PLAIN;
    }
    if (PyDict_CheckExact(value)) {
        Py_ssize_t place = 0;
        PyObject *key, *item;
        write_count(buffer, 0x80, 0xDE, PyDict_GET_SIZE(value));
        while (PyDict_Next(value, &place, &key, &item)) {
            if (!PyUnicode_CheckExact(key)) {
                return NOT_PLAIN;
            }
            fault = pack_text(buffer, key);
            if (!fault) {
                fault = pack(buffer, item, depth + 1);
            }
            if (fault) {
                return fault;
            }
        }
        return PACKED;
    }
    if (PyList_CheckExact(value)) {
        Py_ssize_t count = PyList_GET_SIZE(value);
        write_count(buffer, 0x90, 0xDC, count);
        for (Py_ssize_t n = 0; n < count; n++) {
            fault = pack(buffer, PyList_GET_ITEM(value, n), depth + 1);
            if (fault) {
                return fault;
            }
        }
        return PACKED;
    }
    return NOT_PLAIN;
}

/* Return a new reference to bytes, or to None if the exact path has to look at the value. */
static PyObject *
packed_within(PyObject *value, Py_ssize_t limit)
{
    Buffer buffer;
    PyObject *cell = NULL;
    int fault;

    buffer.size = 0;
    buffer.room = ON_STACK;
    buffer.limit = limit;
    buffer.data = buffer.stack;
    fault = pack(&buffer, value, 1);
    if (fault == NO_MEMORY) {
        PyErr_NoMemory();
    }
    else if (fault == NOT_PLAIN || buffer.size > limit) {
        cell = Py_NewRef(Py_None);
    }
    else {
        cell = PyBytes_FromStringAndSize(buffer.data, buffer.size);
    }
    if (buffer.data != buffer.stack) {
        PyMem_Free(buffer.data);
    }
    return cell;
}

PyDoc_STRVAR(packed_doc, "packed(value, /)\n--\n\n"
"Return a value of exact types as MessagePack; None if `admit` has to look at it.");

static PyObject *
packed(PyObject *Py_UNUSED(module), PyObject *value)
{
    return packed_within(value, MAX_PACKED_BYTES);
}

PyDoc_STRVAR(pack_fields_doc, "pack_fields(fields, limit, /)\n--\n\n"
"Return a list of plain values as MessagePack; None if it is not plain or packs to more bytes.");

static PyObject *
pack_fields(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t limit;

    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "pack_fields() takes a list and a number");
        return NULL;
    }
    limit = PyLong_AsSsize_t(args[1]);
    if (limit == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return packed_within(args[0], limit);
}


/* -- the value of MessagePack ------------------------------------------------------------------ */

/* Texts of map keys, which come again and again: with their hash, they need not be made each time. */
#define KNOWN_KEYS 512 /* a power of two */
#define MAX_KNOWN_BYTES 32

static PyObject *known_keys[KNOWN_KEYS];

typedef struct {
    const unsigned char *at, *end;
} Data;

static PyObject *unpack(Data *data, int depth);

/* Read a number of so many bytes, big-endian; 0 if they are not there. */
static inline int
read_number(Data *data, int bytes, uint64_t *number)
{
    if (data->end - data->at < bytes) {
        return 0;
    }
    *number = 0;
    for (int n = 0; n < bytes; n++) {
        *number = *number << 8 | *data->at++;
    }
    return 1;
}

/* Return a text of `size` bytes; NULL, with or without an error, if there is none. */
static PyObject *
unpack_text(Data *data, uint64_t size)
{
    const char *text = (const char *)data->at;

    if ((uint64_t)(data->end - data->at) < size) {
        return NULL;
    }
    data->at += size;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, NULL);
}

static PyObject *
unpack_key(Data *data)
{
    unsigned char head;
    uint64_t size, place = 0;
    PyObject *known, *text;

    if (data->at == data->end) {
        return NULL;
    }
    head = *data->at++;
    if ((head & 0xE0) == 0xA0) {
        size = head & 0x1F;
    }
    else if (head < 0xD9 || head > 0xDB || !read_number(data, 1 << (head - 0xD9), &size)) {
        return NULL;
    }
    if (size > MAX_KNOWN_BYTES || (uint64_t)(data->end - data->at) < size) {
        return unpack_text(data, size);
    }
    for (uint64_t n = 0; n < size; n++) {
        place = place * 31 + data->at[n];
    }
    place = (place ^ place >> 9) & (KNOWN_KEYS - 1);
    known = known_keys[place];
    if (known != NULL && (uint64_t)PyUnicode_GET_LENGTH(known) == size
        && memcmp(PyUnicode_1BYTE_DATA(known), data->at, size) == 0) {
        data->at += size;
        return Py_NewRef(known);
    }
    text = unpack_text(data, size);
    if (text != NULL && PyUnicode_IS_COMPACT_ASCII(text)) {
        Py_XSETREF(known_keys[place], Py_NewRef(text));
    }
    return text;
}

static PyObject *
unpack_list(Data *data, uint64_t count, int depth)
{
    PyObject *list;

    /* Each item has a byte at least: what is claimed beyond that is no reason to ask for memory. */
    if (depth > MAX_DEPTH || (uint64_t)(data->end - data->at) < count) {
        return NULL;
    }
    list = PyList_New((Py_ssize_t)count);
    for (uint64_t n = 0; list != NULL && n < count; n++) {
        PyObject *item = unpack(data, depth + 1);
        if (item == NULL) {
            Py_CLEAR(list);
        }
        else {
            PyList_SET_ITEM(list, (Py_ssize_t)n, item);
        }
    }
    return list;
}

static PyObject *
unpack_dict(Data *data, uint64_t count, int depth)
{
    PyObject *dict;

    if (depth > MAX_DEPTH || (uint64_t)(data->end - data->at) / 2 < count) {
        return NULL;
    }
    dict = PyDict_New();
    for (uint64_t n = 0; dict != NULL && n < count; n++) {
        PyObject *key = unpack_key(data);
        PyObject *item = key == NULL ? NULL : unpack(data, depth + 1);
        if (item == NULL || PyDict_SetItem(dict, key, item) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(key);
        Py_XDECREF(item);
    }
    return dict;
}

/* Return a value; NULL without an error if it is not plain: damaged, or an extension. */
static PyObject *
unpack(Data *data, int depth)
{
    uint64_t number;
    unsigned char head;
    double real;

    if (data->at == data->end) {
        return NULL;
    }
    head = *data->at++;
    if (head < 0x80) {
        return PyLong_FromLong(head);
    }
    if (head < 0x90) {
        return unpack_dict(data, head & 0x0F, depth);
    }
    if (head < 0xA0) {
        return unpack_list(data, head & 0x0F, depth);
    }
    if (head < 0xC0) {
        return unpack_text(data, head & 0x1F);
    }
    if (head >= 0xE0) {
        return PyLong_FromLong((int8_t)head);
    }
    switch (head) {
    case 0xC0:
        return Py_NewRef(Py_None);
    case 0xC2:
        return Py_NewRef(Py_False);
    case 0xC3:
        return Py_NewRef(Py_True);
    case 0xC4: case 0xC5: case 0xC6:
        if (!read_number(data, 1 << (head - 0xC4), &number)
            || (uint64_t)(data->end - data->at) < number) {
            return NULL;
        }
        data->at += number;
        return PyBytes_FromStringAndSize((const char *)data->at - number, (Py_ssize_t)number);
    case 0xCB:
        if (!read_number(data, 8, &number)) {
            return NULL;
        }
        memcpy(&real, &number, sizeof real);
        return PyFloat_FromDouble(real);
    case 0xCC: case 0xCD: case 0xCE: case 0xCF:
        if (!read_number(data, 1 << (head - 0xCC), &number)) {
            return NULL;
        }
        return PyLong_FromUnsignedLongLong(number);
    case 0xD0: case 0xD1: case 0xD2: case 0xD3:
        if (!read_number(data, 1 << (head - 0xD0), &number)) {
            return NULL;
        }
        /* The sign is that of the highest byte read. */
        number <<= 64 - (8 << (head - 0xD0));
        return PyLong_FromLongLong((int64_t)number >> (64 - (8 << (head - 0xD0))));
    case 0xD9: case 0xDA: case 0xDB:
        return read_number(data, 1 << (head - 0xD9), &number) ? unpack_text(data, number) : NULL;
    case 0xDC: case 0xDD:
        return read_number(data, 2 << (head - 0xDC), &number) ? unpack_list(data, number, depth) : NULL;
    case 0xDE: case 0xDF:
        return read_number(data, 2 << (head - 0xDE), &number) ? unpack_dict(data, number, depth) : NULL;
    default:
        return NULL; /* an extension, a float of 32 bits, or nothing */
    }
}

static PyObject *
unpacked_from(PyObject *exactly, PyObject *cell, int is_whole)
{
    Data data;
    PyObject *value;

    if (PyBytes_CheckExact(cell)) {
        data.at = (const unsigned char *)PyBytes_AS_STRING(cell);
        data.end = data.at + PyBytes_GET_SIZE(cell);
        value = unpack(&data, 1);
        if (value != NULL && is_whole && data.at != data.end) {
            Py_CLEAR(value);
        }
        if (value != NULL || (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))) {
            return value;
        }
        PyErr_Clear(); /* text that is not UTF-8 */
    }
    return PyObject_CallOneArg(exactly, cell);
}

static PyObject *
unpacked_first(PyObject *exactly, PyObject *cell)
{
    return unpacked_from(exactly, cell, 0);
}

static PyObject *
unpacked_whole(PyObject *exactly, PyObject *cell)
{
    return unpacked_from(exactly, cell, 1);
}

static PyMethodDef unpacked_methods[] = {
    {"unpacked", unpacked_first, METH_O,
     "unpacked($self, data, /)\n--\n\nReturn the value that packed bytes begin with."},
    {"unpacked", unpacked_whole, METH_O,
     "unpacked($self, data, /)\n--\n\nReturn the value that packed bytes are."},
};

PyDoc_STRVAR(unpacker_doc, "unpacker(exactly, /)\n--\n\n"
"Return a function that returns the value that bytes begin with; `exactly` has what is not plain.");

static PyObject *
unpacker(PyObject *Py_UNUSED(module), PyObject *exactly)
{
    return PyCFunction_New(&unpacked_methods[0], exactly);
}

PyDoc_STRVAR(whole_unpacker_doc, "whole_unpacker(exactly, /)\n--\n\n"
"Likewise, for bytes that are one value: others are left to `exactly`, too.");

static PyObject *
whole_unpacker(PyObject *Py_UNUSED(module), PyObject *exactly)
{
    return PyCFunction_New(&unpacked_methods[1], exactly);
}


/* -- a look at columns ------------------------------------------------------------------------- */

PyDoc_STRVAR(kinds_of_doc, "kinds_of(column, /)\n--\n\nReturn the set of the types of items.");

static PyObject *
kinds_of(PyObject *Py_UNUSED(module), PyObject *column)
{
    PyTypeObject *last = NULL;
    PyObject *kinds;

    if (!PyList_CheckExact(column)) {
        return PyErr_Format(PyExc_TypeError, "kinds_of() takes a list");
    }
    kinds = PySet_New(NULL);
    for (Py_ssize_t n = 0; kinds != NULL && n < PyList_GET_SIZE(column); n++) {
        PyTypeObject *kind = Py_TYPE(PyList_GET_ITEM(column, n));
        if (kind != last && PySet_Add(kinds, (PyObject *)kind) < 0) {
            Py_CLEAR(kinds);
        }
        last = kind;
    }
    return kinds;
}

PyDoc_STRVAR(length_bounds_doc, "length_bounds(texts, /)\n--\n\n"
"Return the min and max length of texts; 0, 0 for none.");

static PyObject *
length_bounds(PyObject *Py_UNUSED(module), PyObject *texts)
{
    Py_ssize_t least = PY_SSIZE_T_MAX, greatest = 0;

    if (!PyList_CheckExact(texts)) {
        return PyErr_Format(PyExc_TypeError, "length_bounds() takes a list");
    }
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(texts); n++) {
        PyObject *text = PyList_GET_ITEM(texts, n);
        Py_ssize_t length;
        if (!PyUnicode_Check(text)) {
            return PyErr_Format(PyExc_TypeError, "length_bounds() takes a list of str");
        }
        length = PyUnicode_GET_LENGTH(text);
        least = length < least ? length : least;
        greatest = length > greatest ? length : greatest;
    }
    return Py_BuildValue("nn", greatest == 0 ? 0 : least, greatest);
}

PyDoc_STRVAR(plain_size_doc, "plain_size(keys, cells, /)\n--\n\n"
"Return upper bounds in bytes: of plain deltas, and of their longest text or packed value.");

static PyObject *
plain_size(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t size = 0, longest = 0;

    if (count != 2 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "plain_size() takes two lists");
        return NULL;
    }
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(args[0]); n++) {
        PyObject *key = PyList_GET_ITEM(args[0], n);
        if (!PyUnicode_Check(key)) {
            PyErr_SetString(PyExc_TypeError, "plain_size() takes keys that are str");
            return NULL;
        }
        size += PyUnicode_GET_LENGTH(key) + ROW_BYTES;
    }
    for (Py_ssize_t n = 0; n < PyList_GET_SIZE(args[1]); n++) {
        PyObject *cell = PyList_GET_ITEM(args[1], n);
        Py_ssize_t length = PyUnicode_CheckExact(cell) ? PyUnicode_GET_LENGTH(cell)
                            : PyBytes_CheckExact(cell) ? PyBytes_GET_SIZE(cell)
                                                       : 0;
        size += length;
        longest = length > longest ? length : longest;
    }
    return Py_BuildValue("nn", size, longest);
}


/* -- where plain sets gather ------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *items;
    Py_ssize_t shard, limit, longest;
} Intake;

static PyMemberDef intake_members[] = {
    {"items", T_OBJECT_EX, offsetof(Intake, items), 0, NULL},
    {"shard", T_PYSSIZET, offsetof(Intake, shard), 0, NULL},
    {"limit", T_PYSSIZET, offsetof(Intake, limit), 0, NULL},
    {"longest", T_PYSSIZET, offsetof(Intake, longest), 0, NULL},
    {NULL},
};

static int
intake_init(Intake *self, PyObject *args, PyObject *named)
{
    static char *names[] = {"shard", NULL};

    if (!PyArg_ParseTupleAndKeywords(args, named, "n:Intake", names, &self->shard)) {
        return -1;
    }
    Py_XSETREF(self->items, PyList_New(0));
    self->limit = 0;
    self->longest = SHORT_BYTES;
    return self->items == NULL ? -1 : 0;
}

static int
intake_traverse(Intake *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->items);
    return 0;
}

static int
intake_clear(Intake *self)
{
    Py_CLEAR(self->items);
    return 0;
}

static void
intake_dealloc(Intake *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    intake_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot intake_slots[] = {
    {Py_tp_doc, "Plain sets of one lane that are not in its columns yet."},
    {Py_tp_init, intake_init},
    {Py_tp_traverse, intake_traverse},
    {Py_tp_clear, intake_clear},
    {Py_tp_dealloc, intake_dealloc},
    {Py_tp_members, intake_members},
    {0, NULL},
};

static PyType_Spec intake_spec = {
    .name = "broker.speedups._native.Intake",
    .basicsize = sizeof(Intake),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = intake_slots,
};

/* Set when the module is loaded; the type lives as long as the process. */
static PyTypeObject *intake_type;


/* -- set --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *plain_keys, *notify;
} Setter;

static PyMemberDef setter_members[] = {
    {"_plain_keys", T_OBJECT_EX, offsetof(Setter, plain_keys), 0, NULL},
    {"_notify", T_OBJECT_EX, offsetof(Setter, notify), 0, NULL},
    {NULL},
};

static PyObject *name_set_exactly, *name_set_cell;

static PyObject *
set_exactly(PyObject *self, PyObject *key, PyObject *value)
{
    return PyObject_CallMethodObjArgs(self, name_set_exactly, key, value, NULL);
}

/* Return a new reference to where sets of a key gather; NULL without an error if it is not plain. */
static Intake *
intake_of(Setter *self, PyObject *key)
{
    PyObject *found;

    if (!PyUnicode_CheckExact(key) || self->plain_keys == NULL) {
        return NULL;
    }
    found = PyDict_Check(self->plain_keys) ? PyDict_GetItemWithError(self->plain_keys, key) : NULL;
    if (found != NULL) {
        Py_INCREF(found);
    }
    else {
        if (PyErr_Occurred()) {
            return NULL;
        }
        found = PyObject_GetItem(self->plain_keys, key); /* looks at the key, and remembers it */
        if (found == NULL) {
            return NULL;
        }
    }
    if (!PyObject_TypeCheck(found, intake_type) || ((Intake *)found)->items == NULL
        || !PyList_CheckExact(((Intake *)found)->items)) {
        Py_DECREF(found);
        return NULL;
    }
    return (Intake *)found;
}

/* Put a delta behind the others if there is room; 1 if it was, 0 if there is none, -1 on errors. */
static int
gather(Intake *intake, PyObject *key, PyObject *cell)
{
    Py_ssize_t count = PyList_GET_SIZE(intake->items);

    if (count >= intake->limit) {
        return 0;
    }
    if (PyList_Append(intake->items, key) < 0) {
        return -1;
    }
    if (PyList_Append(intake->items, cell) < 0) {
        PyList_SetSlice(intake->items, count, count + 1, NULL);
        return -1;
    }
    return 1;
}

static int
is_plain_scalar(PyObject *value, Py_ssize_t longest)
{
    uint64_t bits;
    int is_negative;

    if (PyFloat_CheckExact(value) || value == Py_None || PyBool_Check(value)) {
        return 1;
    }
    if (PyLong_CheckExact(value)) {
        return is_number_in_range(value, &bits, &is_negative);
    }
    return PyUnicode_CheckExact(value) && PyUnicode_IS_COMPACT_ASCII(value)
           && PyUnicode_GET_LENGTH(value) <= longest;
}

static PyObject *
set(PyObject *self, PyObject *key, PyObject *value)
{
    PyObject *cell, *result = NULL;
    Intake *intake = intake_of((Setter *)self, key);
    int gathered = 0;

    if (intake == NULL) {
        return PyErr_Occurred() ? NULL : set_exactly(self, key, value);
    }
    if (is_plain_scalar(value, intake->longest)) {
        gathered = gather(intake, key, value);
    }
    else if (PyList_GET_SIZE(intake->items) < intake->limit
             && (PyDict_CheckExact(value) || PyList_CheckExact(value) || PyBytes_CheckExact(value))) {
        cell = packed_within(value, MAX_PACKED_BYTES);
        if (cell == NULL) {
            gathered = -1;
        }
        else if (cell != Py_None && PyBytes_GET_SIZE(cell) > intake->longest) {
            result = PyObject_CallMethodObjArgs(self, name_set_cell, key, cell, NULL);
            gathered = -1;
        }
        else if (cell != Py_None) {
            gathered = gather(intake, key, cell);
        }
        Py_XDECREF(cell);
    }
    Py_DECREF(intake);
    if (gathered < 0) {
        return result;
    }
    return gathered ? Py_NewRef(Py_None) : set_exactly(self, key, value);
}

PyDoc_STRVAR(set_doc, "set($self, key, value)\n--\n\n"
"Set a key to a value.\n\n"
"Raises:\n"
"    EncodeError: the key or value cannot be sent; nothing was buffered.\n"
"    BufferFullError: no room (in time).\n"
"    FencedError, ClosedError, ForkedError: this producer cannot write any more.\n");

static PyObject *
setter_set(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    static char *known[] = {"key", "value", NULL};
    PyObject *tuple, *named, *key, *value, *result = NULL;

    if (count == 2 && names == NULL) {
        return set(self, args[0], args[1]);
    }
    tuple = PyTuple_New(count);
    named = PyDict_New();
    if (tuple == NULL || named == NULL) {
        goto done;
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        PyTuple_SET_ITEM(tuple, n, Py_NewRef(args[n]));
    }
    for (Py_ssize_t n = 0; names != NULL && n < PyTuple_GET_SIZE(names); n++) {
        if (PyDict_SetItem(named, PyTuple_GET_ITEM(names, n), args[count + n]) < 0) {
            goto done;
        }
    }
    if (PyArg_ParseTupleAndKeywords(tuple, named, "OO:set", known, &key, &value)) {
        result = set(self, key, value);
    }
done:
    Py_XDECREF(tuple);
    Py_XDECREF(named);
    return result;
}

static int
setter_traverse(Setter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->plain_keys);
    Py_VISIT(self->notify);
    return 0;
}

static int
setter_clear(Setter *self)
{
    Py_CLEAR(self->plain_keys);
    Py_CLEAR(self->notify);
    return 0;
}

static void
setter_dealloc(Setter *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    setter_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef setter_methods[] = {
    {"set", (PyCFunction)(void (*)(void))setter_set, METH_FASTCALL | METH_KEYWORDS, set_doc},
    {NULL},
};

static PyType_Slot setter_slots[] = {
    {Py_tp_doc, "The `set` of a producer: the whole fast path in one step."},
    {Py_tp_traverse, setter_traverse},
    {Py_tp_clear, setter_clear},
    {Py_tp_dealloc, setter_dealloc},
    {Py_tp_members, setter_members},
    {Py_tp_methods, setter_methods},
    {0, NULL},
};

static PyType_Spec setter_spec = {
    .name = "broker.speedups._native.Setter",
    .basicsize = sizeof(Setter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = setter_slots,
};


/* -- the module -------------------------------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"packed", packed, METH_O, packed_doc},
    {"unpacker", unpacker, METH_O, unpacker_doc},
    {"whole_unpacker", whole_unpacker, METH_O, whole_unpacker_doc},
    {"pack_fields", (PyCFunction)(void (*)(void))pack_fields, METH_FASTCALL, pack_fields_doc},
    {"kinds_of", kinds_of, METH_O, kinds_of_doc},
    {"length_bounds", length_bounds, METH_O, length_bounds_doc},
    {"plain_size", (PyCFunction)(void (*)(void))plain_size, METH_FASTCALL, plain_size_doc},
    {NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "What runs for every delta, in C.",
    .m_size = -1, /* one interpreter only */
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *made = PyModule_Create(&module);
    PyObject *setter_type = NULL;

    if (made == NULL) {
        return NULL;
    }
    intake_type = (PyTypeObject *)PyType_FromSpec(&intake_spec);
    setter_type = PyType_FromSpec(&setter_spec);
    name_set_exactly = PyUnicode_InternFromString("_set_exactly");
    name_set_cell = PyUnicode_InternFromString("_set_cell");
    if (intake_type == NULL || setter_type == NULL || name_set_exactly == NULL
        || name_set_cell == NULL
        || PyModule_AddObjectRef(made, "Intake", (PyObject *)intake_type) < 0
        || PyModule_AddObjectRef(made, "Setter", setter_type) < 0
        || PyModule_AddIntMacro(made, MAX_DEPTH) < 0
        || PyModule_AddIntMacro(made, MAX_PACKED_BYTES) < 0
        || PyModule_AddIntMacro(made, ROW_BYTES) < 0
        || PyModule_AddIntMacro(made, SHORT_BYTES) < 0) {
        Py_CLEAR(made);
    }
    Py_XDECREF(setter_type);
    return made;
}
