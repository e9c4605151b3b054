"""Tickets: networks as seeds, masks and a few floats, in files of about one bit per weight or less."""

from keras_mpt.tickets.container import TicketError
from keras_mpt.tickets.saving import load_ticket, restore, save_ticket
from keras_mpt.tickets.ticket import Ticket

__all__ = ["Ticket", "TicketError", "load_ticket", "restore", "save_ticket"]
