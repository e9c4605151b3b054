"""Tickets: a network as seeds, masks and a few floats, in a file of about one bit for each weight, or less."""

from keras_mpt.tickets.container import TicketError
from keras_mpt.tickets.saving import load_ticket, restore, save_ticket
from keras_mpt.tickets.ticket import Ticket

__all__ = ["Ticket", "TicketError", "load_ticket", "restore", "save_ticket"]
